{{/*
The collector: its container, what it mounts, and the pipeline that it is given. Public, for the Pods of other charts:

    initContainers:
      {{- include "sidecar.collector.container" . | nindent 6 }}
*/}}
{{- define "sidecar.collector.container" -}}
{{- $root := get (.Subcharts | default dict) "sidecar" | default . -}}
{{- if $root.Values.collector.enabled }}{{ include "sidecar.collector" $root }}{{ end -}}
{{- end }}

{{/* Annotations for a Pod of yours, which make a new one when what our containers read at their start has changed. */}}
{{- define "sidecar.checksums" -}}
{{- include "sidecar.checksums.of" (get (.Subcharts | default dict) "sidecar" | default .) -}}
{{- end }}

{{/* ---- from here on private: the context of this chart ---- */}}

{{- define "sidecar.collector" -}}
{{- $values := .Values.collector -}}
- name: {{ $values.name }}
  {{- include "sidecar.container.common" (list . "collector") | nindent 2 }}
  {{- if $values.native }}
  restartPolicy: Always
  {{- end }}
  args:
    - collect
    - --config=/etc/sidecar/collector/pipeline.yaml
    {{- with $values.host }}
    - {{ printf "--host=%s" . | quote }}
    {{- end }}
    - --port={{ $values.port }}
    {{- if not $values.ui }}
    - --no-ui
    {{- end }}
    {{- if $values.token.secret }}
    - --token-file=/etc/sidecar/token/{{ $values.token.key }}
    {{- end }}
    {{- with $values.caFile }}
    - --ca-file={{ . }}
    {{- end }}
    {{- with $values.tenant }}
    - {{ printf "--tenant=%s" . | quote }}
    {{- end }}
    - --log-level={{ .Values.log.level }}
    - --log-format={{ .Values.log.format }}
    {{- with $values.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or $values.podinfo $values.env }}
  env:
    {{- if $values.podinfo }}
    {{- range $name, $field := dict "POD_NAME" "metadata.name" "POD_NAMESPACE" "metadata.namespace" "POD_UID" "metadata.uid" "NODE_NAME" "spec.nodeName" }}
    - name: {{ $name }}
      valueFrom:
        fieldRef:
          fieldPath: {{ $field }}
    {{- end }}
    {{- end }}
    {{- with $values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
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
  {{- /* No readiness by default: a receiver that is away must not take the application out of its Service. */}}
  {{- include "sidecar.probes" (list . $values "http" (ternary (list "startup" "liveness" "readiness") (list "startup" "liveness") $values.readiness)) | trim | nindent 2 }}
  {{- $hooks := dict }}
  {{- if and (not $values.native) $values.stopDelay }}
  {{- $_ := set $hooks "preStop" (dict "exec" (dict "command" (list "python3" "-c" (printf "import time; time.sleep(%v)" $values.stopDelay)))) }}
  {{- end }}
  {{- with mustMergeOverwrite $hooks $values.lifecycleHooks }}
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
      {{- if and (ne (include "sidecar.collector.checkpointKind" .) "shared") (kindIs "invalid" $values.removeAfter) }}
      readOnly: true
      {{- end }}
    - name: collector
      mountPath: /etc/sidecar/collector
      readOnly: true
    {{- if ne (include "sidecar.collector.checkpointKind" .) "shared" }}
    - name: collector-state
      mountPath: {{ include "sidecar.collector.directory" . }}
    {{- end }}
    {{- if $values.podinfo }}
    - name: collector-podinfo
      mountPath: /etc/podinfo
      readOnly: true
    {{- end }}
    {{- if $values.token.secret }}
    - name: collector-token
      mountPath: /etc/sidecar/token
      readOnly: true
    {{- end }}
    {{- range $number, $secret := $values.secrets }}
    - name: collector-secret-{{ $number }}
      mountPath: /etc/sidecar/secrets/{{ $secret }}
      readOnly: true
    {{- end }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* The volumes of the collector; not its checkpoint where a StatefulSet makes it from its own template. */}}
{{- define "sidecar.collector.volumes" -}}
{{- $values := .Values.collector -}}
- name: collector
  configMap:
    name: {{ include "sidecar.fullname" . }}-collector
{{- $kind := include "sidecar.collector.checkpointKind" . -}}
{{- if eq $kind "emptyDir" }}
- name: collector-state
  {{- with $values.checkpoint.emptyDir.sizeLimit }}
  emptyDir:
    sizeLimit: {{ . }}
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- else if and (eq $kind "persistentVolumeClaim") (not (include "sidecar.collector.claimTemplate" .)) }}
- name: collector-state
  persistentVolumeClaim:
    claimName: {{ include "sidecar.collector.claimName" . }}
{{- end }}
{{- if $values.podinfo }}
- name: collector-podinfo
  downwardAPI:
    items:
      - path: labels
        fieldRef:
          fieldPath: metadata.labels
      {{- if $values.annotations }}
      - path: annotations
        fieldRef:
          fieldPath: metadata.annotations
      {{- end }}
{{- end }}
{{- range $number, $secret := $values.secrets }}
- name: collector-secret-{{ $number }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* The file for `--config`: the values under their names there. Through toYaml, which keeps 1048576 what it is. */}}
{{- define "sidecar.collector.pipeline" -}}
{{- $values := .Values.collector -}}
files:
  {{- include "sidecar.collector.files" . | fromJsonArray | toYaml | nindent 2 }}
checkpoint: {{ include "sidecar.collector.directory" . }}/offsets.json
{{- range $name := list "exclude" "start" "ignoreOlder" "archives" "root" "encoding" "maxLine" "multiline" "labels" "annotations" "stages" "sinks" "pipelines" "json" "deadLetters" "budget" "heldLimit" "drainTimeout" "removeAfter" "untilFile" "untilProcess" "timeZone" }}
{{- $value := index $values $name }}
{{- if and (eq $name "heldLimit") (not $value) }}
{{- $value = include "sidecar.collector.heldLimit" $ }}
{{- else if and (eq $name "json") (kindIs "invalid" $value) }}
{{- $value = not (empty $values.stages) }}
{{- else if and (eq $name "untilFile") $value (not (hasPrefix "/" $value)) }}
{{- $value = printf "%s/%s" $.Values.volume.mountPath $value }}
{{- end }}
{{- if or $value (kindIs "float64" $value) (kindIs "int64" $value) }}
{{ dict (snakecase $name) $value | toYaml }}
{{- end }}
{{- end }}
{{- end }}

{{/* Half of the shared volume in bytes, where its size is known: deleted files must leave the application room to write. */}}
{{- define "sidecar.collector.heldLimit" -}}
{{- with include "sidecar.emptyDirBytes" . -}}
{{- max 1 (divf (float64 .) 2 | int64) -}}
{{- end -}}
{{- end }}

{{/* The patterns as a list in JSON, absolute. */}}
{{- define "sidecar.collector.files" -}}
{{- $found := list -}}
{{- range .Values.collector.files -}}
{{- $found = append $found (ternary . (printf "%s/%s" (trimSuffix "/" $.Values.volume.mountPath) .) (hasPrefix "/" .)) -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{/* Where the checkpoint is; refuses what contradicts itself. */}}
{{- define "sidecar.collector.checkpointKind" -}}
{{- $checkpoint := .Values.collector.checkpoint -}}
{{- $claim := or $checkpoint.persistentVolumeClaim.existingClaim $checkpoint.persistentVolumeClaim.size -}}
{{- if and $claim $checkpoint.volume (ne $checkpoint.volume "persistentVolumeClaim") -}}
{{- fail (printf "\n\ncollector.checkpoint.volume is %s, and a claim is given in collector.checkpoint.persistentVolumeClaim: set one of the two." $checkpoint.volume) -}}
{{- end -}}
{{- if and (eq $checkpoint.volume "persistentVolumeClaim") (not $claim) -}}
{{- fail "\n\ncollector.checkpoint.volume is persistentVolumeClaim: set collector.checkpoint.persistentVolumeClaim.existingClaim, or its size for a new one." -}}
{{- end -}}
{{- if $checkpoint.volume -}}
{{- $checkpoint.volume -}}
{{- else if $claim -}}
persistentVolumeClaim
{{- else -}}
{{- /* A checkpoint is to live as long as the files it is about. */}}
{{- ternary "shared" "emptyDir" (and (ne (include "sidecar.volumeKind" .) "emptyDir") (not (include "sidecar.readOnlySource" .))) -}}
{{- end -}}
{{- end }}

{{/* The directory of the checkpoint. Readers of the shared volume do not show names with `..`, and neither `rm -rf *` nor patterns for log files take them. */}}
{{- define "sidecar.collector.directory" -}}
{{- if eq (include "sidecar.collector.checkpointKind" .) "shared" -}}
{{- trimSuffix "/" .Values.volume.mountPath }}/..collector
{{- else -}}
/var/lib/sidecar
{{- end -}}
{{- end }}

{{- define "sidecar.collector.claimName" -}}
{{- .Values.collector.checkpoint.persistentVolumeClaim.existingClaim | default (printf "%s-collector" (include "sidecar.fullname" .)) -}}
{{- end }}

{{/* Whether a StatefulSet makes a claim for each Pod. */}}
{{- define "sidecar.collector.claimTemplate" -}}
{{- $claim := .Values.collector.checkpoint.persistentVolumeClaim -}}
{{- if and .Values.enabled .Values.collector.enabled $claim.size (not $claim.existingClaim) (eq .Values.workload.kind "StatefulSet") }}true{{ end -}}
{{- end }}

{{/* Whether the log files, or the checkpoint, are the same ones for all Pods: then two collectors would deliver each line twice. */}}
{{- define "sidecar.collector.common" -}}
{{- $kind := include "sidecar.volumeKind" . -}}
{{- $workload := .Values.workload.kind -}}
{{- $common := or
  (and (eq $kind "persistentVolumeClaim") (not (include "sidecar.ownVolume" .)))
  (and (eq $kind "hostPath") (ne $workload "DaemonSet"))
  (and (eq $kind "source") (not (has (keys .Values.volume.source | first) (list "csi" "ephemeral" "emptyDir"))))
-}}
{{- $inside := printf "%s/" (trimSuffix "/" .Values.volume.mountPath) -}}
{{- range include "sidecar.collector.files" . | fromJsonArray -}}
{{- if and $common (hasPrefix $inside .) }}files {{ end -}}
{{- end -}}
{{- if and (eq (include "sidecar.collector.checkpointKind" .) "persistentVolumeClaim") (not (include "sidecar.collector.claimTemplate" .)) }}checkpoint{{ end -}}
{{- end }}

{{/* The address of a receiver, which is a text or a mapping. */}}
{{- define "sidecar.collector.url" -}}
{{- if kindIs "string" . }}{{ . }}{{ else }}{{ .url }}{{ end -}}
{{- end }}

{{/* Whether it has receivers that are reached by the network. */}}
{{- define "sidecar.collector.network" -}}
{{- if .Values.collector.enabled -}}
{{- range .Values.collector.sinks -}}
{{- if regexMatch "^([a-z]+[+])?https?://" (include "sidecar.collector.url" .) }}true{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}
