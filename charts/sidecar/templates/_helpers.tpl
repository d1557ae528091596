{{/*
Names and labels. All templates take the context of this chart; the public ones in _containers.tpl also that of a chart which uses this one.
*/}}
{{- define "sidecar.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "sidecar.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "sidecar.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sidecar.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "sidecar.namespace" -}}
{{- .Values.namespaceOverride | default .Release.Namespace -}}
{{- end }}

{{- define "sidecar.serviceName" -}}
{{- .Values.service.name | default (include "sidecar.fullname" .) -}}
{{- end }}

{{/* The Service that gives each Pod of a StatefulSet its DNS name. */}}
{{- define "sidecar.headlessName" -}}
{{- printf "%s-headless" (include "sidecar.fullname" . | trunc 54 | trimSuffix "-") -}}
{{- end }}

{{- define "sidecar.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "sidecar.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end }}

{{- define "sidecar.claimName" -}}
{{- .Values.volume.persistentVolumeClaim.existingClaim | default (include "sidecar.fullname" .) -}}
{{- end }}

{{- define "sidecar.selectorLabels" -}}
{{- if .Values.selectorLabels -}}
{{- toYaml .Values.selectorLabels -}}
{{- else -}}
app.kubernetes.io/name: {{ include "sidecar.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}
{{- end }}

{{/* Labels of an object, as a mapping: those of the chart, then those given as the second of (list . MAPPING). */}}
{{- define "sidecar.labels" -}}
{{- $root := index . 0 -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
  "app.kubernetes.io/name" (include "sidecar.name" $root)
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/version" ($root.Chart.AppVersion | toString)
  "app.kubernetes.io/managed-by" $root.Release.Service
-}}
{{- toYaml (mustMergeOverwrite $own $root.Values.labels (index . 1 | default dict)) -}}
{{- end }}

{{/* The head of an object: (list . KIND-SPECIFIC-NAME LABELS ANNOTATIONS). */}}
{{- define "sidecar.metadata" -}}
{{- $root := index . 0 -}}
metadata:
  name: {{ index . 1 | quote }}
  namespace: {{ include "sidecar.namespace" $root | quote }}
  labels:
    {{- include "sidecar.labels" (list $root (index . 2)) | nindent 4 }}
  {{- with mustMergeOverwrite (dict) $root.Values.annotations (index . 3 | default dict) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* A number as a person writes it: Helm reads 67108864 from YAML as 6.7108864e+07. */}}
{{- define "sidecar.number" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end }}

{{/* Whether the Pod has containers that are not ours, and of which we do not know what they need. */}}
{{- define "sidecar.foreign" -}}
{{- if or .Values.extraContainers .Values.initContainers }}true{{ end -}}
{{- end }}

{{/* What kind of volume it is; refuses what contradicts itself. */}}
{{- define "sidecar.volumeKind" -}}
{{- $volume := .Values.volume -}}
{{- $claim := $volume.persistentVolumeClaim -}}
{{- $set := list -}}
{{- if or $volume.hostPath.path $volume.hostPath.type }}{{ $set = append $set "hostPath" }}{{ end -}}
{{- if or $claim.existingClaim $claim.size }}{{ $set = append $set "persistentVolumeClaim" }}{{ end -}}
{{- if $volume.source }}{{ $set = append $set "source" }}{{ end -}}
{{- if gt (len $set) 1 -}}
{{- fail (printf "\n\nvolume.%s are both set: set at most one of volume.hostPath, volume.persistentVolumeClaim and volume.source (without one it is an emptyDir)." (join " and volume." $set)) -}}
{{- end -}}
{{- first (append $set "emptyDir") -}}
{{- end }}

{{/* Whether the volume is one that nobody can write to. */}}
{{- define "sidecar.readOnlySource" -}}
{{- if and (eq (include "sidecar.volumeKind" .) "source") (has (keys .Values.volume.source | first) (list "configMap" "secret" "projected" "downwardAPI" "image")) }}true{{ end -}}
{{- end }}

{{/* Whether each Pod has content of its own, which the other Pods do not see. */}}
{{- define "sidecar.ownVolume" -}}
{{- $kind := include "sidecar.volumeKind" . -}}
{{- if or (eq $kind "emptyDir") (and (eq $kind "persistentVolumeClaim") (eq .Values.workload.kind "StatefulSet") (not .Values.volume.persistentVolumeClaim.existingClaim)) }}true{{ end -}}
{{- end }}

{{- define "sidecar.hasInitialContent" -}}
{{- with .Values.initialContent }}{{ if or .text .files .configMap .secret }}true{{ end }}{{ end -}}
{{- end }}

{{/* The path of "writer" or "reader". */}}
{{- define "sidecar.path" -}}
{{- (index (index . 0).Values (index . 1)).path | default (index . 0).Values.path -}}
{{- end }}

{{- define "sidecar.image" -}}
{{- $repository := .Values.image.repository -}}
{{- with .Values.global.imageRegistry -}}
{{- /* The first part names a registry if it has a dot or a port, or is localhost: the rule of all container engines. */}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") -}}
{{- end -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ $repository }}@{{ .digest }}
{{- else -}}
{{ $repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Whether the image is one that no registry has, so that it must have been loaded into the nodes. */}}
{{- define "sidecar.image.local" -}}
{{- if hasPrefix "localhost/" (include "sidecar.image" .) }}true{{ end -}}
{{- end }}

{{- define "sidecar.image.pullPolicy" -}}
{{- .Values.image.pullPolicy | default (ternary "Never" "IfNotPresent" (not (empty (include "sidecar.image.local" .)))) -}}
{{- end }}

{{/* The Secrets for the registry; nothing where there are none. */}}
{{- define "sidecar.image.pullSecrets" -}}
{{- $secrets := list -}}
{{- range concat .Values.global.imagePullSecrets .Values.image.pullSecrets -}}
{{- $secrets = append $secrets (ternary (dict "name" .) . (kindIs "string" .)) -}}
{{- end -}}
{{- with $secrets | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{/* Whether a container listens where only its own Pod can ask: VALUES. */}}
{{- define "sidecar.onLoopback" -}}
{{- if regexMatch "^(127[.].*|::1|localhost)$" (.host | default "") }}true{{ end -}}
{{- end }}

{{/* Whether requests reach the port from outside of the cluster's network: (list ROOT ROLE). */}}
{{- define "sidecar.exposed" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $root.Values $role -}}
{{- $service := and $root.Values.service.enabled $values.service.enabled -}}
{{- $routes := list -}}
{{- if $root.Values.ingress.enabled }}{{ range $root.Values.ingress.hosts }}{{ $routes = concat $routes .paths }}{{ end }}{{ end -}}
{{- if $root.Values.httpRoute.enabled }}{{ $routes = concat $routes $root.Values.httpRoute.paths }}{{ end -}}
{{- if or $values.hostPort (and $service (ne $root.Values.service.type "ClusterIP")) }}true{{ end -}}
{{- range $routes }}{{ if eq .to $role }}true{{ end }}{{ end -}}
{{- end }}

{{/* A quantity of Kubernetes in bytes. */}}
{{- define "sidecar.bytes" -}}
{{- $factor := get (dict "" 1 "k" 1000 "M" 1e6 "G" 1e9 "T" 1e12 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) (regexFind "[A-Za-z]*$" (toString .)) -}}
{{- mulf (regexFind "^[0-9.]+" (toString .) | float64) $factor | int64 -}}
{{- end }}

{{/* The limit of the shared volume in bytes; nothing where it is no emptyDir, or has no limit. */}}
{{- define "sidecar.emptyDirBytes" -}}
{{- $size := .Values.volume.emptyDir.sizeLimit -}}
{{- if and (eq (include "sidecar.volumeKind" .) "emptyDir") $size }}{{ include "sidecar.bytes" (include "sidecar.number" $size) }}{{ end -}}
{{- end }}
