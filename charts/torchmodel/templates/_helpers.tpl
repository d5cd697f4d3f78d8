{{/* Name of the release's objects. */}}
{{- define "torchmodel.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the operator's pods. */}}
{{- define "torchmodel.selector" -}}
app.kubernetes.io/name: torchmodel-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "torchmodel.labels" -}}
{{ include "torchmodel.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: torchmodel
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "torchmodel.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "torchmodel.fullname" .) -}}
{{- end -}}

{{/* REPOSITORY@DIGEST or REPOSITORY:TAG of an image; call with (dict "image" … "root" $). */}}
{{- define "torchmodel.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Namespaces that are watched, as JSON; of use only with scope.namespaced. */}}
{{- define "torchmodel.namespaces" -}}
{{- .Values.scope.namespaces | default (list .Release.Namespace) | toJson -}}
{{- end -}}
