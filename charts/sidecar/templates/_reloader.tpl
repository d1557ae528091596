{{/*
The reloader. Public, for the Pods of other charts:

    initContainers:
      {{- include "sidecar.reloader.container" . | nindent 6 }}
*/}}
{{- define "sidecar.reloader.container" -}}
{{- $root := get (.Subcharts | default dict) "sidecar" | default . -}}
{{- if $root.Values.reloader.enabled }}{{ include "sidecar.reloader" $root }}{{ end -}}
{{- end }}

{{/* ---- from here on private: the context of this chart ---- */}}

{{- define "sidecar.reloader" -}}
{{- $values := .Values.reloader -}}
- name: {{ $values.name }}
  {{- include "sidecar.container.common" (list . "reloader") | nindent 2 }}
  {{- if $values.native }}
  restartPolicy: Always
  {{- end }}
  args:
    {{- include "sidecar.reloader.args" . | trim | nindent 4 }}
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
  {{- /* No readiness by default: a version that is refused must not take the application out of its Service. */}}
  {{- include "sidecar.probes" (list . $values "http" (ternary (list "startup" "liveness" "readiness") (list "startup" "liveness") $values.readiness)) | trim | nindent 2 }}
  {{- with $values.lifecycleHooks }}
  lifecycle:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumeMounts:
    - name: {{ .Values.volume.name }}
      mountPath: {{ .Values.volume.mountPath }}
      {{- if not (include "sidecar.reloader.publishes" .) }}
      readOnly: true
      {{- end }}
    {{- if $values.token.secret }}
    - name: reloader-token
      mountPath: /etc/sidecar/token
      readOnly: true
    {{- end }}
    {{- with include "sidecar.verifyKey.mount" (list . "reloader") | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- if $values.password.secret }}
    - name: reloader-password
      mountPath: /etc/sidecar/password
      readOnly: true
    {{- end }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Arguments: each value that has the name of an option is that option; null, "" and false leave its default. The storage options are those of the writer. */}}
{{- define "sidecar.reloader.args" -}}
{{- $values := .Values.reloader -}}
- reload
- {{ printf "--path=%s" (include "sidecar.path" (list . "reloader")) | quote }}
{{- range $values.actions }}
{{- range $kind, $value := . }}
- {{ printf "--%s=%s" (kebabcase $kind) $value | quote }}
{{- end }}
{{- end }}
- --port={{ $values.port }}
{{- range $name := list "host" "signal" "timeout" "confirmUrl" "confirmTimeout" "stateFile" "expandTo" "splay" "user" "stopUrl" "caFile" "drainTimeout" "maxSize" "watch" "recheck" "include" "exclude" "quiet" }}
{{- $value := index $values $name }}
{{- if not (or (kindIs "invalid" $value) (and (eq (toString $value) "") (ne $name "exclude"))) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "sidecar.number" $value) | quote }}
{{- end }}
{{- end }}
{{- range $name := list "parallel" "rollbackOnFailure" }}
{{- if index $values $name }}
- --{{ kebabcase $name }}
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
{{- include "sidecar.verifyKey.args" (list . "reloader") }}
{{- if $values.password.secret }}
- --password-file=/etc/sidecar/password/{{ $values.password.key }}
{{- end }}
{{- if or $values.rollbackOnFailure $values.expandTo }}
{{- range $name := list "mode" "group" "keep" "keepBytes" "keepDeleted" "volumeBudget" "durability" }}
{{- $value := index $.Values.writer $name }}
{{- if and (eq $name "volumeBudget") (not $value) }}
{{- $value = include "sidecar.volumeBudget" $ }}
{{- end }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- {{ printf "--%s=%s" (kebabcase $name) (include "sidecar.number" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- with $values.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whether it publishes to the shared volume. */}}
{{- define "sidecar.reloader.publishes" -}}
{{- $inside := printf "%s/" (trimSuffix "/" .Values.volume.mountPath) -}}
{{- if or .Values.reloader.rollbackOnFailure (hasPrefix $inside .Values.reloader.expandTo) }}true{{ end -}}
{{- end }}

{{/* Whether it sends requests to elsewhere. */}}
{{- define "sidecar.reloader.network" -}}
{{- if .Values.reloader.enabled -}}
{{- $urls := list .Values.reloader.confirmUrl .Values.reloader.stopUrl -}}
{{- range .Values.reloader.actions }}{{ with get . "webhook" }}{{ $urls = append $urls . }}{{ end }}{{ end -}}
{{- range $urls }}{{ if and . (not (include "sidecar.isLocal" .)) }}true{{ end }}{{ end -}}
{{- end -}}
{{- end }}

{{- define "sidecar.reloader.validate" -}}
{{- $values := .Values.reloader -}}
{{- include "sidecar.validate.credentials" (list . "reloader") -}}
{{- if not $values.actions -}}
{{- fail "\n\nreloader.actions is empty: name what is done for each version, as `- webhook: http://localhost:9090/-/reload`." -}}
{{- end -}}
{{- include "sidecar.validate.actions" (list . "reloader") -}}
{{- if and (include "sidecar.reloader.publishes" .) (include "sidecar.readOnlySource" .) -}}
{{- fail (printf "\n\nreloader.rollbackOnFailure and reloader.expandTo publish to the shared volume, and volume.source.%s cannot be written to: set rollbackOnFailure=false, or take another volume." (keys .Values.volume.source | first)) -}}
{{- end -}}
{{- end }}
