{{/*
What a schema cannot say in words that a person understands: values that contradict each other.
Each message names the value, what it is, and what is allowed.
*/}}
{{- define "sidecar.validate" -}}
{{- $kind := .Values.workload.kind -}}
{{- $volume := include "sidecar.volumeKind" . -}}
{{- with .Values.volume.hostPath -}}
{{- if and .type (not .path) -}}
{{- fail "\n\nvolume.hostPath.path is missing: with volume.hostPath.type, give the directory of the node, as /data." -}}
{{- end -}}
{{- if and .path (not (hasPrefix "/" .path)) -}}
{{- fail (printf "\n\nvolume.hostPath.path is %q: it must be absolute, as /data." .path) -}}
{{- end -}}
{{- end -}}
{{- with .Values.volume.persistentVolumeClaim -}}
{{- if and .existingClaim .size -}}
{{- fail "\n\nvolume.persistentVolumeClaim: existingClaim and size are both set; existingClaim takes a claim that is there, size makes a new one." -}}
{{- end -}}
{{- end -}}
{{- if gt (len .Values.volume.source) 1 -}}
{{- fail (printf "\n\nvolume.source has %d keys (%s): a volume has one source, as `nfs: {server: …, path: …}`." (len .Values.volume.source) (keys .Values.volume.source | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if not (hasPrefix "/" .Values.volume.mountPath) -}}
{{- fail (printf "\n\nvolume.mountPath is %q: it must be absolute, as /shared." .Values.volume.mountPath) -}}
{{- end -}}
{{- range $role := list "writer" "reader" -}}
{{- $path := include "sidecar.path" (list $ $role) -}}
{{- $inside := printf "%s/" (trimSuffix "/" $.Values.volume.mountPath) -}}
{{- if and (index $.Values $role).enabled (not (hasPrefix $inside (printf "%s/" (trimSuffix "/" $path)))) -}}
{{- fail (printf "\n\nThe path of the %s is %q, which is not in the shared volume: it must begin with %s (volume.mountPath)." $role $path $inside) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.writer.enabled .Values.reader.enabled -}}
{{- if eq (int .Values.writer.port) (int .Values.reader.port) -}}
{{- fail (printf "\n\nwriter.port and reader.port are both %d: the containers of a Pod share its network, so give them different ones." (int .Values.writer.port)) -}}
{{- end -}}
{{- if eq .Values.writer.name .Values.reader.name -}}
{{- fail (printf "\n\nwriter.name and reader.name are both %q: give them different ones." .Values.writer.name) -}}
{{- end -}}
{{- end -}}
{{- if not (or .Values.writer.enabled .Values.reader.enabled .Values.extraContainers) -}}
{{- fail "\n\nThe Pod would have no container: set writer.enabled, reader.enabled or extraContainers." -}}
{{- end -}}
{{- range $role := list "writer" "reader" -}}
{{- $values := index $.Values $role -}}
{{- if and $values.native $values.enabled (semverCompare "<1.29.0-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "\n\n%s.native needs Kubernetes 1.29, and this is %s." $role $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and $values.service.nodePort (eq $.Values.service.type "ClusterIP") -}}
{{- fail (printf "\n\n%s.service.nodePort is set, and service.type is ClusterIP: it must be NodePort or LoadBalancer." $role) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.writer.enabled .Values.reader.enabled .Values.writer.native .Values.reader.native (not .Values.extraContainers) -}}
{{- fail "\n\nwriter.native and reader.native are both set, and there are no extraContainers: a Pod needs one container that is no init container." -}}
{{- end -}}
{{- if and (ne $kind "Pod") (ne .Values.pod.restartPolicy "Always") -}}
{{- fail (printf "\n\npod.restartPolicy is %s: a %s restarts its Pods Always; others are for workload.kind Pod." .Values.pod.restartPolicy $kind) -}}
{{- end -}}
{{- $drain := addf .Values.drain.delay .Values.drain.timeout -}}
{{- if le (float64 .Values.pod.terminationGracePeriodSeconds) (float64 $drain) -}}
{{- fail (printf "\n\npod.terminationGracePeriodSeconds is %v: it must be greater than drain.delay and drain.timeout together (%v), or running requests are killed." .Values.pod.terminationGracePeriodSeconds $drain) -}}
{{- end -}}
{{- if and .Values.writer.enabled (eq $volume "source") -}}
{{- $source := keys .Values.volume.source | first -}}
{{- if has $source (list "configMap" "secret" "projected" "downwardAPI" "image") -}}
{{- fail (printf "\n\nvolume.source.%s cannot be written to: set writer.enabled=false, or take another volume." $source) -}}
{{- end -}}
{{- end -}}
{{- if .Values.autoscaling.enabled -}}
{{- if not (has $kind (list "Deployment" "StatefulSet")) -}}
{{- fail (printf "\n\nautoscaling.enabled: a %s has no number of replicas; workload.kind must be Deployment or StatefulSet." $kind) -}}
{{- end -}}
{{- if and .Values.writer.enabled (include "sidecar.ownVolume" .) -}}
{{- fail "\n\nautoscaling.enabled: each Pod has a volume of its own here, so a content would reach one Pod only; set writer.enabled=false, or share a claim (volume.persistentVolumeClaim.existingClaim)." -}}
{{- end -}}
{{- if lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas) -}}
{{- fail (printf "\n\nautoscaling.maxReplicas is %d: it must be at least autoscaling.minReplicas (%d)." (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) -}}
{{- end -}}
{{- end -}}
{{- with .Values.initialContent -}}
{{- $given := list -}}
{{- range $name := list "text" "files" "configMap" "secret" }}{{ if index $.Values.initialContent $name }}{{ $given = append $given $name }}{{ end }}{{ end -}}
{{- if gt (len $given) 1 -}}
{{- fail (printf "\n\ninitialContent.%s are both set: set one of text, files, configMap and secret." (join " and initialContent." $given)) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.service.enabled) -}}
{{- fail "\n\ningress.enabled needs service.enabled." -}}
{{- end -}}
{{- if .Values.httpRoute.enabled -}}
{{- if not .Values.httpRoute.parentRefs -}}
{{- fail "\n\nhttpRoute.parentRefs is empty: name the gateway, as `- name: gateway`." -}}
{{- end -}}
{{- if not .Values.service.enabled -}}
{{- fail "\n\nhttpRoute.enabled needs service.enabled." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.service.enabled) -}}
{{- fail "\n\nmetrics.serviceMonitor.enabled needs service.enabled; without a Service take metrics.podMonitor." -}}
{{- end -}}
{{- end }}
