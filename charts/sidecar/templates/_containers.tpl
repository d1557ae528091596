{{/*
The public templates, for the Pods of other charts (examples/chart shows one):

    containers:
      {{- include "sidecar.writer.container" . | nindent 6 }}
      {{- include "sidecar.reader.container" . | nindent 6 }}
    initContainers:
      {{- include "sidecar.collector.container" . | nindent 6 }}
    volumes:
      {{- include "sidecar.sharedVolume" . | nindent 6 }}

Each gives items of a list. `.` is the context of the chart that depends on this one; under an alias give `.Subcharts.ALIAS`.
*/}}
{{- define "sidecar.writer.container" -}}
{{- include "sidecar.container" (list (get (.Subcharts | default dict) "sidecar" | default .) "writer") -}}
{{- end }}

{{- define "sidecar.reader.container" -}}
{{- include "sidecar.container" (list (get (.Subcharts | default dict) "sidecar" | default .) "reader") -}}
{{- end }}

{{- define "sidecar.sharedVolume" -}}
{{- $root := get (.Subcharts | default dict) "sidecar" | default . -}}
{{- with include "sidecar.volume" $root }}{{ . }}
{{ end }}
{{- include "sidecar.otherVolumes" $root -}}
{{- end }}

{{/* An init container that lays the initial content onto the volume; nothing where no initial content is given. */}}
{{- define "sidecar.initialContent.container" -}}
{{- $root := get (.Subcharts | default dict) "sidecar" | default . -}}
{{- if include "sidecar.hasInitialContent" $root -}}
{{- $path := include "sidecar.path" (list $root "writer") -}}
- name: {{ $root.Values.writer.name }}-initial
  {{- include "sidecar.container.common" (list $root "writer") | nindent 2 }}
  args:
    - publish
    - {{ include "sidecar.initialContent.source" $root }}
    - --path={{ $path }}
    - --mode={{ $root.Values.writer.mode }}
    - --if-missing
  {{- with $root.Values.writer.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: {{ $root.Values.volume.name }}
      mountPath: {{ $root.Values.volume.mountPath }}
    - name: initial-content
      mountPath: /etc/sidecar/initial
      readOnly: true
{{- end -}}
{{- end }}

{{/* ---- from here on private: (list ROOT "writer"|"reader") ---- */}}

{{- define "sidecar.container" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $root.Values $role -}}
{{- $scheme := ternary "https" "http" (not (empty $root.Values.tls.secret)) -}}
- name: {{ $values.name }}
  {{- include "sidecar.container.common" . | nindent 2 }}
  {{- if $values.native }}
  restartPolicy: Always
  {{- end }}
  args:
    {{- include "sidecar.args" . | nindent 4 }}
  {{- with $values.env }}
  env:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: {{ $values.name }}
      containerPort: {{ $values.port }}
      protocol: TCP
      {{- with $values.hostPort }}
      hostPort: {{ . }}
      {{- end }}
    {{- with $values.adminPort }}
    - name: {{ include "sidecar.adminPortName" $values }}
      containerPort: {{ . }}
      protocol: TCP
    {{- end }}
  {{- include "sidecar.probes" (list $root $values $scheme (list "startup" "liveness" "readiness")) | trim | nindent 2 }}
  {{- with $values.lifecycleHooks }}
  lifecycle:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: {{ $root.Values.volume.name }}
      mountPath: {{ $root.Values.volume.mountPath }}
      {{- if eq $role "reader" }}
      readOnly: true
      {{- end }}
    {{- if and (eq $role "writer") $values.schema }}
    - name: config
      mountPath: /etc/sidecar/config
      readOnly: true
    {{- end }}
    {{- if $values.token.secret }}
    - name: {{ $role }}-token
      mountPath: /etc/sidecar/token
      readOnly: true
    {{- end }}
    {{- if $values.readToken.secret }}
    - name: {{ $role }}-read-token
      mountPath: /etc/sidecar/read-token
      readOnly: true
    {{- end }}
    {{- with include "sidecar.verifyKey.mount" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if $root.Values.tls.secret }}
    - name: tls
      mountPath: /etc/sidecar/tls
      readOnly: true
    {{- end }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The name of the admin port: VALUES. A name of a port has at most 15 characters. */}}
{{- define "sidecar.adminPortName" -}}
{{- printf "%s-admin" (.name | trunc 9 | trimSuffix "-") -}}
{{- end }}

{{/* Probes: (list ROOT CONTAINER-VALUES SCHEME NAMES). */}}
{{- define "sidecar.probes" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- $scheme := index . 2 -}}
{{- $urls := dict "startup" "/startupz" "liveness" "/livez" "readiness" "/readyz" -}}
{{- $port := $values.name -}}
{{- $number := $values.port -}}
{{- $listener := $values -}}
{{- if get $values "adminPort" -}}
{{- $scheme = "http" -}}
{{- $port = include "sidecar.adminPortName" $values -}}
{{- $number = $values.adminPort -}}
{{- $listener = dict "host" $values.adminHost -}}
{{- end -}}
{{- range $name := index . 3 }}
{{- with get $root.Values.probes $name }}
{{ $name }}Probe:
  {{- if or (eq $root.Values.probes.type "exec") (include "sidecar.onLoopback" $listener) }}
  exec:
    command: [sidecar, check, {{ printf "%s://%s:%v%s" $scheme (include "sidecar.ownHost" $listener) $number (get $urls $name) | quote }}, --timeout={{ mulf 0.6 (.timeoutSeconds | default 1) }}]
  {{- else }}
  httpGet: {path: {{ get $urls $name }}, port: {{ $port }}, scheme: {{ upper $scheme }}}
  {{- end }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The host by which containers of the Pod reach one of ours: VALUES. An address with a colon is IPv6, and stands in brackets. */}}
{{- define "sidecar.ownHost" -}}
{{- $host := .host | default "" -}}
{{- if has $host (list "" "::" "0.0.0.0") -}}localhost
{{- else if contains ":" $host -}}[{{ $host }}]
{{- else -}}{{ $host }}
{{- end -}}
{{- end }}

{{/* The names of a container, as a list in JSON: those that are given, of its Service, and of the routes that lead to it. */}}
{{- define "sidecar.allowedHosts" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $service := include "sidecar.serviceName" $root -}}
{{- $namespace := include "sidecar.namespace" $root -}}
{{- $names := concat (index $root.Values $role).allowedHosts (list $service (printf "%s.%s" $service $namespace) (printf "%s.%s.svc" $service $namespace)) -}}
{{- if $root.Values.ingress.enabled -}}
{{- range $root.Values.ingress.hosts -}}
{{- $host := .host -}}
{{- range .paths }}{{ if and $host (eq .to $role) }}{{ $names = append $names $host }}{{ end }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $root.Values.httpRoute.enabled }}{{ $names = concat $names $root.Values.httpRoute.hostnames }}{{ end -}}
{{- $names | uniq | toJson -}}
{{- end }}

{{/* The budget of the writer in bytes, below the limit of an emptyDir; nothing where that is not known. Half of it belongs to log files where there is a collector. */}}
{{- define "sidecar.volumeBudget" -}}
{{- with include "sidecar.emptyDirBytes" . -}}
{{- max 1 (mulf (float64 .) (ternary 0.5 0.875 $.Values.collector.enabled) | int64) -}}
{{- end -}}
{{- end }}

{{- define "sidecar.container.common" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
image: {{ include "sidecar.image" $root | quote }}
imagePullPolicy: {{ include "sidecar.image.pullPolicy" $root }}
{{- with mustMergeOverwrite (dict) (deepCopy $root.Values.containerSecurityContext) $values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Arguments: each value that has the name of an option is that option; null and "" leave its default. */}}
{{- define "sidecar.args" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $root.Values $role -}}
- {{ ternary "write" "read" (eq $role "writer") }}
- {{ printf "--path=%s" (include "sidecar.path" .) | quote }}
- --port={{ $values.port }}
{{- range $name := ternary (list "host" "adminPort" "adminHost" "maxSize" "headTimeout" "maxConnections" "workers" "format" "check" "checkTimeout" "mode" "group" "keep" "keepBytes" "keepDeleted" "volumeBudget" "durability") (list "host" "adminPort" "adminHost" "missing" "maxSize" "headTimeout" "maxConnections" "workers" "watch" "recheck" "include" "exclude" "quiet") (eq $role "writer") }}
{{- $value := index $values $name }}
{{- if and (eq $name "volumeBudget") (not $value) }}
{{- $value = include "sidecar.volumeBudget" $root }}
{{- end }}
{{- if not (or (kindIs "invalid" $value) (and (eq (toString $value) "") (not (has $name (list "missing" "exclude"))))) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "sidecar.number" $value) | quote }}
{{- end }}
{{- end }}
{{- if $values.accessLog }}
- --access-log
{{- end }}
{{- if not $values.ui }}
- --no-ui
{{- end }}
{{- if eq $role "writer" }}
{{- with $values.auditLog }}
- {{ printf "--audit-log=%s" . | quote }}
{{- end }}
{{- with $values.confirmCa }}
- {{ printf "--confirm-ca=%s" . | quote }}
{{- end }}
{{- if $values.schema }}
- --schema=/etc/sidecar/config/schema.json
{{- end }}
{{- if $values.confirm }}
- --confirm={{ $values.confirm }}
{{- else if $root.Values.reader.enabled }}
- --confirm={{ ternary "https" "http" (not (empty $root.Values.tls.secret)) }}://{{ include "sidecar.ownHost" $root.Values.reader }}:{{ $root.Values.reader.port }}
{{- end }}
{{- end }}
{{- if eq $role "writer" }}
{{- with $values.allowedOrigins }}
- {{ printf "--allowed-origins=%s" (join "," .) | quote }}
{{- end }}
{{- end }}
{{- if eq $role "reader" }}
{{- range $values.corsOrigin }}
- {{ printf "--cors-origin=%s" . | quote }}
{{- end }}
{{- end }}
{{- if $values.allowedHosts }}
- {{ printf "--allowed-hosts=%s" (include "sidecar.allowedHosts" . | fromJsonArray | join ",") | quote }}
{{- end }}
{{- if $values.token.secret }}
- --token-file=/etc/sidecar/token{{ with $values.token.key }}/{{ . }}{{ end }}
{{- end }}
{{- if $values.readToken.secret }}
- --read-token-file=/etc/sidecar/read-token{{ with $values.readToken.key }}/{{ . }}{{ end }}
{{- end }}
{{- include "sidecar.verifyKey.args" . }}
{{- if $root.Values.tls.secret }}
- --tls-cert=/etc/sidecar/tls/tls.crt
- --tls-key=/etc/sidecar/tls/tls.key
{{- end }}
- --drain-delay={{ include "sidecar.number" $root.Values.drain.delay }}
- --drain-timeout={{ include "sidecar.number" $root.Values.drain.timeout }}
- --log-level={{ $root.Values.log.level }}
- --log-format={{ $root.Values.log.format }}
{{- with $values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The public keys of a container, by which contents are verified: its argument, its mount, its volume. (list ROOT ROLE). */}}
{{- define "sidecar.verifyKey.args" -}}
{{- with (index (index . 0).Values (index . 1)).verifyKey }}
{{- if or .configMap .secret }}
- {{ printf "--verify-key=/etc/sidecar/verify-key/%s" .key | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sidecar.verifyKey.mount" -}}
{{- $role := index . 1 -}}
{{- with (index (index . 0).Values $role).verifyKey }}
{{- if or .configMap .secret }}
- name: {{ $role }}-verify-key
  mountPath: /etc/sidecar/verify-key
  readOnly: true
{{- end }}
{{- end }}
{{- end }}

{{- define "sidecar.verifyKey.volume" -}}
{{- $role := index . 1 -}}
{{- $values := index (index . 0).Values $role -}}
{{- with $values.verifyKey }}
{{- if and $values.enabled .configMap .secret }}
{{- fail (printf "\n\n%s.verifyKey.configMap and %s.verifyKey.secret are both set: the keys are in one of them." $role $role) -}}
{{- end }}
{{- if and $values.enabled (or .configMap .secret) }}
- name: {{ $role }}-verify-key
  {{- if .secret }}
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
  {{- else }}
  configMap:
    name: {{ .configMap }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The source of the initial content, in the container. */}}
{{- define "sidecar.initialContent.source" -}}
{{- with .Values.initialContent -}}
{{- if .files -}}/etc/sidecar/initial
{{- else if .text -}}/etc/sidecar/initial/{{ base (include "sidecar.path" (list $ "writer")) }}
{{- else if .key -}}/etc/sidecar/initial/{{ .key }}
{{- else -}}/etc/sidecar/initial
{{- end -}}
{{- end -}}
{{- end }}

{{/* The shared volume; nothing where a StatefulSet makes it from its own template. */}}
{{- define "sidecar.volume" -}}
{{- $kind := include "sidecar.volumeKind" . -}}
{{- $volume := .Values.volume -}}
{{- if eq $kind "hostPath" -}}
- name: {{ $volume.name }}
  hostPath:
    path: {{ $volume.hostPath.path }}
    {{- with $volume.hostPath.type }}
    type: {{ . }}
    {{- end }}
{{- else if eq $kind "persistentVolumeClaim" -}}
{{- if or $volume.persistentVolumeClaim.existingClaim (ne .Values.workload.kind "StatefulSet") (not .Values.enabled) -}}
- name: {{ $volume.name }}
  persistentVolumeClaim:
    claimName: {{ include "sidecar.claimName" . }}
{{- end -}}
{{- else if eq $kind "source" -}}
- name: {{ $volume.name }}
  {{- toYaml $volume.source | nindent 2 }}
{{- else -}}
- name: {{ $volume.name }}
  {{- if or $volume.emptyDir.sizeLimit $volume.emptyDir.medium }}
  emptyDir:
    {{- with $volume.emptyDir.sizeLimit }}
    sizeLimit: {{ . }}
    {{- end }}
    {{- with $volume.emptyDir.medium }}
    medium: {{ . }}
    {{- end }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end -}}
{{- end }}

{{/* What our containers mount beside it. */}}
{{- define "sidecar.otherVolumes" -}}
{{- if include "sidecar.hasInitialContent" . }}
- name: initial-content
  {{- if .Values.initialContent.secret }}
  secret:
    secretName: {{ .Values.initialContent.secret }}
  {{- else }}
  configMap:
    name: {{ .Values.initialContent.configMap | default (printf "%s-initial" (include "sidecar.fullname" .)) }}
  {{- end }}
{{- end }}
{{- if and .Values.writer.enabled .Values.writer.schema }}
- name: config
  configMap:
    name: {{ include "sidecar.fullname" . }}-config
{{- end }}
{{- range $role := list "writer" "reader" "collector" "reloader" "mirror" }}
{{- $values := index $.Values $role }}
{{- if and $values.enabled $values.token.secret }}
- name: {{ $role }}-token
  secret:
    secretName: {{ $values.token.secret }}
    defaultMode: 0440
{{- end }}
{{- if and $values.enabled (dig "readToken" "secret" "" $values) }}
- name: {{ $role }}-read-token
  secret:
    secretName: {{ $values.readToken.secret }}
    defaultMode: 0440
{{- end }}
{{- with include "sidecar.verifyKey.volume" (list $ $role) | trim }}
{{ . }}
{{- end }}
{{- with $values.password }}
{{- if and $values.enabled .secret }}
- name: {{ $role }}-password
  secret:
    secretName: {{ .secret }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.tls.secret }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if .Values.collector.enabled }}
{{ include "sidecar.collector.volumes" . }}
{{- end }}
{{- if .Values.mirror.enabled }}
{{- with include "sidecar.mirror.volumes" . | trim }}
{{ . }}
{{- end }}
{{- end }}
{{- end }}
