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
{{- range $role := list "writer" "reader" "reloader" "mirror" -}}
{{- $path := include "sidecar.path" (list $ $role) -}}
{{- $inside := printf "%s/" (trimSuffix "/" $.Values.volume.mountPath) -}}
{{- if and (index $.Values $role).enabled (not (hasPrefix $inside (printf "%s/" (trimSuffix "/" $path)))) -}}
{{- fail (printf "\n\nThe path of the %s is %q, which is not in the shared volume: it must begin with %s (volume.mountPath)." $role $path $inside) -}}
{{- end -}}
{{- end -}}
{{- range $pair := list (list "writer" "reader") (list "writer" "collector") (list "reader" "collector") (list "writer" "reloader") (list "reader" "reloader") (list "collector" "reloader") (list "writer" "mirror") (list "reader" "mirror") (list "collector" "mirror") (list "reloader" "mirror") -}}
{{- $one := index $.Values (first $pair) -}}
{{- $other := index $.Values (last $pair) -}}
{{- if and $one.enabled $other.enabled -}}
{{- if eq (int $one.port) (int $other.port) -}}
{{- fail (printf "\n\n%s.port and %s.port are both %d: the containers of a Pod share its network, so give them different ones." (first $pair) (last $pair) (int $one.port)) -}}
{{- end -}}
{{- if eq $one.name $other.name -}}
{{- fail (printf "\n\n%s.name and %s.name are both %q: give them different ones." (first $pair) (last $pair) $one.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $role := list "writer" "reader" -}}
{{- $admin := (index $.Values $role).adminPort -}}
{{- if and $admin (index $.Values $role).enabled -}}
{{- range $other := list "writer" "reader" "collector" "reloader" "mirror" -}}
{{- $one := index $.Values $other -}}
{{- if and $one.enabled (or (eq (int $admin) (int $one.port)) (and (ne $role $other) (eq (int $admin) (int (get $one "adminPort"))))) -}}
{{- fail (printf "\n\n%s.adminPort is %d, a port of the %s: the containers of a Pod share its network, so give them different ones." $role (int $admin) $other) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not (or .Values.writer.enabled .Values.reader.enabled .Values.collector.enabled .Values.reloader.enabled .Values.mirror.enabled .Values.extraContainers) -}}
{{- fail "\n\nThe Pod would have no container: set writer.enabled, reader.enabled, collector.enabled, reloader.enabled, mirror.enabled or extraContainers." -}}
{{- end -}}
{{- if .Values.service.enabled -}}
{{- range $role := list "writer" "reader" -}}
{{- $values := index $.Values $role -}}
{{- if and $values.enabled $values.service.enabled (include "sidecar.onLoopback" $values) -}}
{{- fail (printf "\n\n%s.host is %s, where only its own Pod reaches it, and the Service leads there: set %s.service.enabled=false, or another host." $role $values.host $role) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $native := list -}}
{{- range $role := list "writer" "reader" "collector" "reloader" "mirror" -}}
{{- $values := index $.Values $role -}}
{{- if and $values.enabled $values.native (dig "follow" true $values) }}{{ $native = append $native (printf "%s.native" $role) }}{{ end -}}
{{- if and $values.native $values.enabled (semverCompare "<1.29.0-0" $.Capabilities.KubeVersion.Version) -}}
{{- fail (printf "\n\n%s.native needs Kubernetes 1.29, and this is %s." $role $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if and (get $values.service "nodePort") (eq $.Values.service.type "ClusterIP") -}}
{{- fail (printf "\n\n%s.service.nodePort is set, and service.type is ClusterIP: it must be NodePort or LoadBalancer." $role) -}}
{{- end -}}
{{- end -}}
{{- $ordinary := .Values.extraContainers -}}
{{- range $role := list "writer" "reader" "collector" "reloader" "mirror" }}{{ with index $.Values $role }}{{ if and .enabled (not .native) (dig "follow" true .) }}{{ $ordinary = list $role }}{{ end }}{{ end }}{{ end -}}
{{- if not $ordinary -}}
{{- fail (printf "\n\n%s: nothing else runs in the Pod, and a Pod needs one container that is no init container; set one of them to false, or add extraContainers." (join " and " $native)) -}}
{{- end -}}
{{- if and (ne $kind "Pod") (ne .Values.pod.restartPolicy "Always") -}}
{{- fail (printf "\n\npod.restartPolicy is %s: a %s restarts its Pods Always; others are for workload.kind Pod." .Values.pod.restartPolicy $kind) -}}
{{- end -}}
{{- include "sidecar.validate.end" . -}}
{{- include "sidecar.validate.disk" . -}}
{{- if and .Values.writer.enabled (include "sidecar.readOnlySource" .) -}}
{{- fail (printf "\n\nvolume.source.%s cannot be written to: set writer.enabled=false, or take another volume." (keys .Values.volume.source | first)) -}}
{{- end -}}
{{- if .Values.collector.enabled -}}
{{- include "sidecar.collector.validate" . -}}
{{- end -}}
{{- if .Values.reloader.enabled -}}
{{- include "sidecar.reloader.validate" . -}}
{{- end -}}
{{- if .Values.mirror.enabled -}}
{{- include "sidecar.mirror.validate" . -}}
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

{{- define "sidecar.collector.validate" -}}
{{- $values := .Values.collector -}}
{{- $checkpoint := include "sidecar.collector.checkpointKind" . -}}
{{- $mounted := list (printf "%s/" (trimSuffix "/" .Values.volume.mountPath)) -}}
{{- $writable := list (printf "%s/" (include "sidecar.collector.directory" .)) -}}
{{- range $values.extraVolumeMounts -}}
{{- $place := printf "%s/" (trimSuffix "/" .mountPath) -}}
{{- $mounted = append $mounted $place -}}
{{- if not .readOnly }}{{ $writable = append $writable $place }}{{ end -}}
{{- end -}}
{{- if not $values.files -}}
{{- fail "\n\ncollector.files is empty: name the log files, as [\"*.log*\"]." -}}
{{- end -}}
{{- range include "sidecar.collector.files" . | fromJsonArray -}}
{{- if not (include "sidecar.inside" (list . $mounted)) -}}
{{- fail (printf "\n\ncollector.files: %q is on no volume that the collector mounts: it must begin with %s (volume.mountPath), or with a mountPath of collector.extraVolumeMounts." . (first $mounted)) -}}
{{- end -}}
{{- end -}}
{{- if and $values.deadLetters (not (include "sidecar.inside" (list $values.deadLetters $writable))) -}}
{{- fail (printf "\n\ncollector.deadLetters is %q, where the collector cannot write: it must be in %s, or in a mountPath of collector.extraVolumeMounts." $values.deadLetters (first $writable)) -}}
{{- end -}}
{{- range $values.sinks -}}
{{- $url := include "sidecar.collector.url" . -}}
{{- if regexMatch "://[^/?#]*:[^/?#]*@" $url -}}
{{- fail (printf "\n\ncollector.sinks: %s has a password in its address, which would lie in a ConfigMap: put it into a Secret, name that in collector.secrets, and give the receiver `user` and `password_file: /etc/sidecar/secrets/NAME/KEY`." (regexReplaceAll "://[^/?#]*@" $url "://…@")) -}}
{{- end -}}
{{- if and (hasPrefix "file://" $url) (not (include "sidecar.inside" (list (trimPrefix "file://" $url) $writable))) -}}
{{- fail (printf "\n\ncollector.sinks: %s is where the collector cannot write: it must be on a volume of collector.extraVolumeMounts that is not readOnly." $url) -}}
{{- end -}}
{{- end -}}
{{- if and (eq $checkpoint "shared") (include "sidecar.readOnlySource" .) -}}
{{- fail (printf "\n\ncollector.checkpoint.volume is shared, and volume.source.%s cannot be written to: take emptyDir or persistentVolumeClaim." (keys .Values.volume.source | first)) -}}
{{- end -}}
{{- $many := or (eq .Values.workload.kind "DaemonSet") (and (has .Values.workload.kind (list "Deployment" "StatefulSet")) (or .Values.autoscaling.enabled (gt (int .Values.workload.replicas) 1))) -}}
{{- $common := include "sidecar.collector.common" . -}}
{{- if and $many (contains "files" $common) -}}
{{- fail "\n\ncollector.enabled: several Pods share the volume with the log files, and the collector of each would deliver every line; set workload.replicas=1 (without autoscaling), or give each Pod a volume of its own (volume.emptyDir, or a StatefulSet with volume.persistentVolumeClaim.size)." -}}
{{- end -}}
{{- if and $many (contains "checkpoint" $common) -}}
{{- fail "\n\ncollector.checkpoint.persistentVolumeClaim: several Pods would share the one checkpoint; set workload.replicas=1, or workload.kind StatefulSet with collector.checkpoint.persistentVolumeClaim.size, which gives each Pod a claim." -}}
{{- end -}}
{{- if and (or $values.untilFile $values.untilProcess) $values.native .Values.enabled -}}
{{- fail "\n\ncollector.untilFile and collector.untilProcess end the collector, and a native sidecar that ends is started again; set collector.native=false, with workload.kind Pod and pod.restartPolicy OnFailure or Never." -}}
{{- end -}}
{{- if and $values.untilProcess .Values.enabled (not .Values.pod.shareProcessNamespace) -}}
{{- fail "\n\ncollector.untilProcess: the collector cannot see the processes of other containers; set pod.shareProcessNamespace=true, or take collector.untilFile." -}}
{{- end -}}
{{- if and $values.readiness (or .Values.writer.enabled .Values.reader.enabled (include "sidecar.foreign" .)) -}}
{{- fail "\n\ncollector.readiness: a receiver that is away would take the other containers of the Pod out of their Service; set it to false, and metrics.prometheusRule.enabled=true to be told." -}}
{{- end -}}
{{- end }}

{{/*
The end of a Pod: ordinary containers end at the same time, and native sidecars after them, one after the other.
The grace period is for all of them, and what is left at its end is killed.
https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/
*/}}
{{- define "sidecar.validate.end" -}}
{{- $drain := addf .Values.drain.delay .Values.drain.timeout -}}
{{- $ordinary := 0.0 -}}
{{- $native := 0.0 -}}
{{- $parts := list -}}
{{- $what := "drain.delay and drain.timeout" -}}
{{- range $role := list "writer" "reader" -}}
{{- $values := index $.Values $role -}}
{{- if and $values.enabled $values.native -}}
{{- $native = addf $native $drain -}}
{{- $parts = append $parts (printf "drain.delay and drain.timeout of the %s (%v)" $role $drain) -}}
{{- else if $values.enabled -}}
{{- $ordinary = $drain -}}
{{- end -}}
{{- end -}}
{{- with .Values.collector -}}
{{- if and .enabled .native -}}
{{- $native = addf $native .drainTimeout -}}
{{- $parts = append $parts (printf "collector.drainTimeout (%v)" .drainTimeout) -}}
{{- else if and .enabled (gt (addf .stopDelay .drainTimeout) (float64 $ordinary)) -}}
{{- $ordinary = addf .stopDelay .drainTimeout -}}
{{- $what = "collector.stopDelay and collector.drainTimeout" -}}
{{- end -}}
{{- end -}}
{{- with .Values.reloader -}}
{{- if and .enabled .native -}}
{{- $native = addf $native .drainTimeout -}}
{{- $parts = append $parts (printf "reloader.drainTimeout (%v)" .drainTimeout) -}}
{{- else if and .enabled (gt (float64 .drainTimeout) (float64 $ordinary)) -}}
{{- $ordinary = float64 .drainTimeout -}}
{{- $what = "reloader.drainTimeout" -}}
{{- end -}}
{{- end -}}
{{- with .Values.mirror -}}
{{- if and .enabled .follow .actions -}}
{{- /* An action that runs has 10 s to end. */}}
{{- if .native -}}
{{- $native = addf $native 10 -}}
{{- $parts = append $parts "10 for mirror.actions" -}}
{{- else if gt 10.0 (float64 $ordinary) -}}
{{- $ordinary = 10.0 -}}
{{- $what = "mirror.actions" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $ordinary -}}
{{- $parts = prepend $parts (printf "%s (%v)" $what $ordinary) -}}
{{- end -}}
{{- $sum := addf $ordinary $native -}}
{{- if and $parts (le (float64 .Values.pod.terminationGracePeriodSeconds) (float64 $sum)) -}}
{{- fail (printf "\n\npod.terminationGracePeriodSeconds is %v: it must be greater than %v, the sum of %s, or what is on its way then is killed." .Values.pod.terminationGracePeriodSeconds $sum (join " and " $parts)) -}}
{{- end -}}
{{- end }}

{{/* The kubelet evicts a Pod at the sum of the limits of ephemeral storage, too, and an emptyDir on the disk counts. */}}
{{- define "sidecar.validate.disk" -}}
{{- $size := include "sidecar.emptyDirBytes" . -}}
{{- if and $size (ne .Values.volume.emptyDir.medium "Memory") -}}
{{- $sum := 0 -}}
{{- $others := .Values.extraContainers -}}
{{- range $role := list "writer" "reader" "collector" "reloader" "mirror" -}}
{{- $values := index $.Values $role -}}
{{- if $values.enabled }}{{ $others = append $others (dict "resources" $values.resources) }}{{ end -}}
{{- end -}}
{{- range $others -}}
{{- with .resources }}{{ with .limits }}{{ with index . "ephemeral-storage" }}{{ $sum = add $sum (include "sidecar.bytes" (include "sidecar.number" .)) }}{{ end }}{{ end }}{{ end -}}
{{- end -}}
{{- if and $sum (gt (int64 $size) $sum) -}}
{{- fail (printf "\n\nvolume.emptyDir.sizeLimit is %v, and the limits of ephemeral-storage of the containers are %d bytes together: the Pod would be evicted there before; raise writer.resources.limits.ephemeral-storage." .Values.volume.emptyDir.sizeLimit $sum) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Actions that cannot work: (list ROOT ROLE). */}}
{{- define "sidecar.validate.actions" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- range (index $root.Values $role).actions -}}
{{- if and (hasKey . "process") $root.Values.enabled (not $root.Values.pod.shareProcessNamespace) -}}
{{- fail (printf "\n\n%s.actions: the %s cannot see the processes of other containers; set pod.shareProcessNamespace=true, or take a webhook." $role $role) -}}
{{- end -}}
{{- with get . "webhook" -}}
{{- if regexMatch "://[^/?#]*:[^/?#]*@" . -}}
{{- fail (printf "\n\n%s.actions: %s has a password in its address, which would lie in the Pod: put a password or a bearer token into a Secret, and name that in %s.password.secret (with %s.user), or %s.token.secret." $role (regexReplaceAll "://[^/?#]*@" . "://…@") $role $role $role) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Credentials for requests, given half or twice: (list ROOT ROLE). */}}
{{- define "sidecar.validate.credentials" -}}
{{- $role := index . 1 -}}
{{- $values := index (index . 0).Values $role -}}
{{- if ne (empty $values.user) (empty $values.password.secret) -}}
{{- fail (printf "\n\n%s.user and %s.password.secret go together: set both, or neither." $role $role) -}}
{{- end -}}
{{- if and $values.user $values.token.secret -}}
{{- fail (printf "\n\n%s.user and %s.token.secret are both set: a request has one kind of credentials." $role $role) -}}
{{- end -}}
{{- end }}

{{/* Whether a path is in one of these directories, which end in a slash: (list PATH DIRECTORIES). */}}
{{- define "sidecar.inside" -}}
{{- $path := index . 0 -}}
{{- range index . 1 }}{{ if hasPrefix . $path }}true{{ end }}{{ end -}}
{{- end }}
