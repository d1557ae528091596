{{/*
The mirror: what sources elsewhere have becomes files on the volume. Public, for the Pods of other charts:

    initContainers:
      {{- include "sidecar.mirror.init" . | nindent 6 }}
      {{- include "sidecar.mirror.container" . | nindent 6 }}
*/}}
{{- define "sidecar.mirror.container" -}}
{{- $root := get (.Subcharts | default dict) "sidecar" | default . -}}
{{- with $root.Values.mirror }}{{ if and .enabled .follow }}{{ include "sidecar.mirror" $root }}{{ end }}{{ end -}}
{{- end }}

{{/* An init container that ends when everything is published, so that the containers after it start with the files. */}}
{{- define "sidecar.mirror.init" -}}
{{- $root := get (.Subcharts | default dict) "sidecar" | default . -}}
{{- with $root.Values.mirror }}{{ if and .enabled .init.enabled }}{{ include "sidecar.mirror.once" $root }}{{ end }}{{ end -}}
{{- end }}

{{/* ---- from here on private: the context of this chart ---- */}}

{{- define "sidecar.mirror" -}}
{{- $values := .Values.mirror -}}
- name: {{ $values.name }}
  {{- include "sidecar.container.common" (list . "mirror") | nindent 2 }}
  {{- if $values.native }}
  restartPolicy: Always
  {{- end }}
  args:
    {{- include "sidecar.mirror.args" . | trim | nindent 4 }}
    {{- include "sidecar.mirror.following" . | trim | nindent 4 }}
    {{- with $values.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "sidecar.mirror.environment" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  ports:
    - name: {{ $values.name }}
      containerPort: {{ $values.port }}
      protocol: TCP
      {{- with $values.hostPort }}
      hostPort: {{ . }}
      {{- end }}
  {{- /* No readiness by default: a source that is away must not keep the application out of its Service. */}}
  {{- include "sidecar.probes" (list . $values "http" (ternary (list "startup" "liveness" "readiness") (list "startup" "liveness") $values.readiness)) | trim | nindent 2 }}
  {{- with $values.lifecycleHooks }}
  lifecycle:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- include "sidecar.mirror.resources" . | nindent 2 }}
{{- end }}

{{- define "sidecar.mirror.once" -}}
{{- $values := .Values.mirror -}}
- name: {{ $values.name }}-init
  {{- include "sidecar.container.common" (list . "mirror") | nindent 2 }}
  args:
    {{- include "sidecar.mirror.args" . | trim | nindent 4 }}
    - --once
    {{- with $values.init.timeout }}
    - --timeout={{ include "sidecar.number" . }}
    {{- end }}
    {{- if $values.init.orLastGood }}
    - --or-last-good
    {{- end }}
    {{- with $values.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "sidecar.mirror.environment" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- include "sidecar.mirror.resources" . | nindent 2 }}
{{- end }}

{{- define "sidecar.mirror.environment" -}}
{{- with .Values.mirror.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.mirror.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "sidecar.mirror.resources" -}}
{{- $values := .Values.mirror -}}
{{- with $values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: {{ .Values.volume.name }}
    mountPath: {{ .Values.volume.mountPath }}
  {{- if include "sidecar.mirror.account" . }}
  - name: mirror-account
    mountPath: /var/run/secrets/kubernetes.io/serviceaccount
    readOnly: true
  {{- end }}
  {{- if $values.schema }}
  - name: mirror-config
    mountPath: /etc/sidecar/config
    readOnly: true
  {{- end }}
  {{- if $values.token.secret }}
  - name: mirror-token
    mountPath: /etc/sidecar/token
    readOnly: true
  {{- end }}
  {{- with include "sidecar.verifyKey.mount" (list . "mirror") | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- if $values.password.secret }}
  - name: mirror-password
    mountPath: /etc/sidecar/password
    readOnly: true
  {{- end }}
  {{- range $number, $secret := $values.secrets }}
  - name: mirror-secret-{{ $number }}
    mountPath: /etc/sidecar/secrets/{{ $secret }}
    readOnly: true
  {{- end }}
  {{- if include "sidecar.mirror.git" . }}
  - name: mirror-tmp
    mountPath: /tmp
  {{- end }}
  {{- with $values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "sidecar.mirror.volumes" -}}
{{- $values := .Values.mirror -}}
{{- if include "sidecar.mirror.account" . }}
- name: mirror-account
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: {{ int64 $values.account.expirationSeconds }}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {apiVersion: v1, fieldPath: metadata.namespace}}]
{{- end }}
{{- if $values.schema }}
- name: mirror-config
  configMap:
    name: {{ include "sidecar.fullname" . }}-mirror
{{- end }}
{{- range $number, $secret := $values.secrets }}
- name: mirror-secret-{{ $number }}
  secret:
    secretName: {{ $secret | quote }}
    defaultMode: 0440
{{- end }}
{{- if include "sidecar.mirror.git" . }}
- name: mirror-tmp
  emptyDir:
    sizeLimit: {{ $values.tmpSizeLimit }}
{{- end }}
{{- end }}

{{/* Arguments of both containers: each value that has the name of an option is that option; null, "" and false leave its default. The storage options are those of the writer. */}}
{{- define "sidecar.mirror.args" -}}
{{- $values := .Values.mirror -}}
- mirror
{{- range $values.sources }}
- {{ . | quote }}
{{- end }}
- {{ printf "--path=%s/" (trimSuffix "/" (include "sidecar.path" (list . "mirror"))) | quote }}
{{- range $name := list "maxSize" "format" "check" "checkTimeout" "shrinkLimit" }}
{{- $value := index $values $name }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "sidecar.number" $value) | quote }}
{{- end }}
{{- end }}
{{- range $name := list "allowShrink" "allowRewind" }}
{{- if index $values $name }}
- --{{ kebabcase $name }}
{{- end }}
{{- end }}
{{- if $values.schema }}
- --schema=/etc/sidecar/config/schema.json
{{- end }}
{{- include "sidecar.verifyKey.args" (list . "mirror") }}
{{- range $name := list "mode" "group" "keep" "keepBytes" "keepDeleted" "volumeBudget" "durability" }}
{{- $value := index $.Values.writer $name }}
{{- if and (eq $name "volumeBudget") (not $value) }}
{{- $value = include "sidecar.volumeBudget" $ }}
{{- end }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "sidecar.number" $value) | quote }}
{{- end }}
{{- end }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end }}

{{/* Arguments of the container that goes on. */}}
{{- define "sidecar.mirror.following" -}}
{{- $values := .Values.mirror -}}
- --port={{ $values.port }}
{{- range $name := list "host" "staleAfter" }}
{{- $value := index $values $name }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "sidecar.number" $value) | quote }}
{{- end }}
{{- end }}
{{- if $values.actions }}
{{- range $values.actions }}
{{- range $kind, $value := . }}
- {{ printf "--%s=%s" (kebabcase $kind) $value | quote }}
{{- end }}
{{- end }}
{{- range $name := list "signal" "actionTimeout" "caFile" "user" }}
{{- $value := index $values $name }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "sidecar.number" $value) | quote }}
{{- end }}
{{- end }}
{{- if not $values.initial }}
- --no-initial
{{- end }}
{{- with $values.expectStatus }}
- --expect-status={{ join "," . }}
{{- end }}
{{- if $values.token.secret }}
- --token-file=/etc/sidecar/token/{{ $values.token.key }}
{{- end }}
{{- if $values.password.secret }}
- --password-file=/etc/sidecar/password/{{ $values.password.key }}
{{- end }}
{{- end }}
{{- end }}

{{/* Whether it asks the API server of the cluster of its Pod. */}}
{{- define "sidecar.mirror.account" -}}
{{- if .Values.mirror.enabled -}}
{{- range .Values.mirror.sources }}{{ if and (hasPrefix "kube://" .) (not (regexMatch "#(.*&)?server=" .)) }}true{{ end }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Whether the command git runs, which needs a directory for temporary files. */}}
{{- define "sidecar.mirror.git" -}}
{{- if .Values.mirror.enabled }}{{ range .Values.mirror.sources }}{{ if hasPrefix "git+" . }}true{{ end }}{{ end }}{{ end -}}
{{- end }}

{{/* What the sources of Kubernetes read, as JSON: by namespace (* is all), rules for RBAC. `list` and `watch` are all that is asked. */}}
{{- define "sidecar.mirror.rules" -}}
{{- $found := dict -}}
{{- range .Values.mirror.sources -}}
{{- if and (hasPrefix "kube://" .) (not (regexMatch "#(.*&)?server=" .)) -}}
{{- $parts := splitList "/" (regexReplaceAll "[?#].*$" (trimPrefix "kube://" .) "") -}}
{{- $kinds := splitList "+" (index (append (append $parts "") "") 1) -}}
{{- $rule := dict "apiGroups" (list "") "resources" $kinds "verbs" (list "list" "watch") -}}
{{- with index (concat $parts (list "" "" "")) 2 }}{{ $_ := set $rule "resourceNames" (splitList "," .) }}{{ end -}}
{{- range $namespace := splitList "," (first $parts) -}}
{{- $own := ternary (include "sidecar.namespace" $) $namespace (eq $namespace ".") -}}
{{- $rules := get $found $own | default list -}}
{{- if not (has $rule $rules) }}{{ $_ := set $found $own (append $rules $rule) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{- define "sidecar.mirror.validate" -}}
{{- $values := .Values.mirror -}}
{{- include "sidecar.validate.credentials" (list . "mirror") -}}
{{- if not $values.sources -}}
{{- fail "\n\nmirror.sources is empty: name what is mirrored, as `- kube://./configmaps?labelSelector=app`." -}}
{{- end -}}
{{- range $values.sources -}}
{{- if regexMatch "://[^/?#]*:[^/?#]*@" . -}}
{{- fail (printf "\n\nmirror.sources: %s has a password in its address, which would lie in the Pod: put it into a Secret, name that in mirror.secrets, and give the source `#user=…&password_file=/etc/sidecar/secrets/NAME/KEY`." (regexReplaceAll "://[^/?#]*@" . "://…@")) -}}
{{- end -}}
{{- end -}}
{{- if not (or $values.follow $values.init.enabled) -}}
{{- fail "\n\nmirror.follow is false, and mirror.init.enabled, too: nothing would be mirrored; set one of them." -}}
{{- end -}}
{{- if and $values.init.orLastGood (not $values.init.timeout) -}}
{{- fail "\n\nmirror.init.orLastGood needs mirror.init.timeout: the seconds after which what is on the volume already is good enough." -}}
{{- end -}}
{{- if and $values.actions (not $values.follow) -}}
{{- fail "\n\nmirror.actions are for versions that come while the Pod runs: set mirror.follow=true, or leave them out." -}}
{{- end -}}
{{- include "sidecar.validate.actions" (list . "mirror") -}}
{{- if include "sidecar.readOnlySource" . -}}
{{- fail (printf "\n\nvolume.source.%s cannot be written to: set mirror.enabled=false, or take another volume." (keys .Values.volume.source | first)) -}}
{{- end -}}
{{- $path := printf "%s/" (trimSuffix "/" (include "sidecar.path" (list . "mirror"))) -}}
{{- $writers := printf "%s/" (trimSuffix "/" (include "sidecar.path" (list . "writer"))) -}}
{{- if and .Values.writer.enabled (or (hasPrefix $path $writers) (hasPrefix $writers $path)) -}}
{{- fail (printf "\n\nmirror and writer both publish to %s, and a set has one publisher: set writer.enabled=false, or give one of them a path of its own (mirror.path)." $path) -}}
{{- end -}}
{{- if hasKey (include "sidecar.mirror.rules" . | fromJson) "*" -}}
{{- if and $values.rbac.create (not $values.rbac.clusterWide) -}}
{{- fail "\n\nmirror.sources: kube://*/… reads objects of all namespaces, which needs a ClusterRole: set mirror.rbac.clusterWide=true, or name the namespaces." -}}
{{- end -}}
{{- end -}}
{{- end }}
