{{- define "vane.fullname" -}}
{{- default .Release.Name .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "vane.bundle" -}}
{{- default (printf "%s-bundle" (include "vane.fullname" .)) .Values.global.spire.bundleConfigMap }}
{{- end }}

{{/* (list . "server"): what tells the pods of a part from others. */}}
{{- define "vane.selector" -}}
{{- $name := include "vane.fullname" (index . 0) -}}
app.kubernetes.io/name: {{ $name }}-{{ index . 1 }}
app.kubernetes.io/part-of: {{ $name }}
{{- end }}

{{- define "vane.chart" -}}
app.kubernetes.io/part-of: {{ include "vane.fullname" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* (list . "server") */}}
{{- define "vane.labels" -}}
app.kubernetes.io/name: {{ include "vane.fullname" (index . 0) }}-{{ index . 1 }}
{{ include "vane.chart" (index . 0) }}
{{- end }}

{{- define "vane.image" -}}
{{- $image := .Values.image -}}
{{- $registry := default $image.registry .Values.global.spire.image.registry -}}
{{- if $registry }}{{ $registry }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{/* (list . "server" .Values.…serviceAccount) */}}
{{- define "vane.account" -}}
{{- $account := index . 2 -}}
{{- $own := printf "%s-%s" (include "vane.fullname" (index . 0)) (index . 1) -}}
{{- if $account.create }}{{ default $own $account.name }}{{ else }}{{ default "default" $account.name }}{{ end }}
{{- end }}

{{- define "vane.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- {{ if kindIs "string" . }}name: {{ . | quote }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where a part's pods run. */}}
{{- define "vane.placement" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" }}
{{- with index $ $key }}
{{ $key }}: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
