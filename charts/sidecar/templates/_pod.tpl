{{/* Metadata and spec of the Pod, for all four kinds of workload. */}}
{{- define "sidecar.pod.labels" -}}
{{- $own := mustMergeOverwrite (include "sidecar.labels" (list . (dict)) | fromYaml) .Values.pod.labels (include "sidecar.selectorLabels" . | fromYaml) -}}
{{- toYaml $own -}}
{{- end }}

{{/* The checksums make a new Pod when what it reads at its start has changed. */}}
{{- define "sidecar.pod.annotations" -}}
{{- $own := mustMergeOverwrite (dict) .Values.annotations .Values.pod.annotations -}}
{{- if not (hasKey $own "kubectl.kubernetes.io/default-container") -}}
{{- $names := list -}}
{{- range $role := list "reader" "writer" "collector" "reloader" "mirror" }}{{ with index $.Values $role }}{{ if .enabled }}{{ $names = append $names .name }}{{ end }}{{ end }}{{ end -}}
{{- if and .Values.extraContainers (not (or .Values.reader.enabled .Values.writer.enabled)) -}}
{{- /* Collector, reloader and mirror are beside the application, not the other way round. */}}
{{- $names = prepend $names (first .Values.extraContainers).name -}}
{{- end -}}
{{- with $names }}{{ $_ := set $own "kubectl.kubernetes.io/default-container" (first .) }}{{ end -}}
{{- end -}}
{{- if ne .Values.workload.kind "Pod" -}}
{{- $own = mustMergeOverwrite $own (include "sidecar.checksums.of" . | fromYaml) -}}
{{- end -}}
{{- toYaml $own -}}
{{- end }}

{{- define "sidecar.checksums.of" -}}
{{- if or .Values.initialContent.text .Values.initialContent.files }}
checksum/initial-content: {{ toJson .Values.initialContent | sha256sum }}
{{- end }}
{{- if and .Values.writer.enabled .Values.writer.schema }}
checksum/config: {{ .Values.writer.schema | sha256sum }}
{{- end }}
{{- if and .Values.mirror.enabled .Values.mirror.schema }}
checksum/mirror: {{ .Values.mirror.schema | sha256sum }}
{{- end }}
{{- if .Values.collector.enabled }}
checksum/collector: {{ include "sidecar.collector.pipeline" . | sha256sum }}
{{- end }}
{{- end }}

{{- define "sidecar.pod.spec" -}}
{{- $root := . -}}
serviceAccountName: {{ include "sidecar.serviceAccountName" . }}
automountServiceAccountToken: {{ .Values.serviceAccount.automountToken }}
# A Service named "sidecar" would set variables SIDECAR_*, which are ours.
enableServiceLinks: false
restartPolicy: {{ .Values.pod.restartPolicy }}
terminationGracePeriodSeconds: {{ .Values.pod.terminationGracePeriodSeconds }}
{{- include "sidecar.image.pullSecrets" . }}
{{- with .Values.pod }}
{{- with .securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .shareProcessNamespace }}
shareProcessNamespace: true
{{- end }}
{{- if kindIs "bool" .hostUsers }}
hostUsers: {{ .hostUsers }}
{{- end }}
{{- range $key := list "priorityClassName" "runtimeClassName" "dnsPolicy" }}
{{- with get $root.Values.pod $key }}
{{ $key }}: {{ . }}
{{- end }}
{{- end }}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "dnsConfig" "hostAliases" }}
{{- with get $root.Values.pod $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- with .topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml . | nindent 4 }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "sidecar.selectorLabels" $root | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}
{{- $init := list (include "sidecar.initialContent.container" .) -}}
{{- $main := list -}}
{{- /* Before all others, which may need its files. */}}
{{- if and .Values.mirror.enabled .Values.mirror.init.enabled }}{{ $init = append $init (include "sidecar.mirror.once" .) }}{{ end -}}
{{- if and .Values.mirror.enabled .Values.mirror.follow -}}
{{- $container := include "sidecar.mirror" . -}}
{{- if .Values.mirror.native }}{{ $init = append $init $container }}{{ else }}{{ $main = append $main $container }}{{ end -}}
{{- end -}}
{{- range $role := list "writer" "reader" -}}
{{- $values := index $root.Values $role -}}
{{- if $values.enabled -}}
{{- $container := include "sidecar.container" (list $root $role) -}}
{{- if $values.native }}{{ $init = append $init $container }}{{ else }}{{ $main = append $main $container }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if .Values.collector.enabled -}}
{{- $container := include "sidecar.collector" . -}}
{{- if .Values.collector.native }}{{ $init = append $init $container }}{{ else }}{{ $main = append $main $container }}{{ end -}}
{{- end -}}
{{- if .Values.reloader.enabled -}}
{{- $container := include "sidecar.reloader" . -}}
{{- if .Values.reloader.native }}{{ $init = append $init $container }}{{ else }}{{ $main = append $main $container }}{{ end -}}
{{- end -}}
{{- with .Values.initContainers }}{{ $init = append $init (toYaml .) }}{{ end -}}
{{- with .Values.extraContainers }}{{ $main = append $main (toYaml .) }}{{ end -}}
{{- with without $init "" }}
initContainers:
  {{- range . }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end }}
containers:
  {{- range $main }}
  {{- . | nindent 2 }}
  {{- end }}
{{- $volumes := list (include "sidecar.volume" .) (include "sidecar.otherVolumes" . | trim) -}}
{{- with .Values.extraVolumes }}{{ $volumes = append $volumes (toYaml .) }}{{ end -}}
{{- with without $volumes "" }}
volumes:
  {{- range . }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}
