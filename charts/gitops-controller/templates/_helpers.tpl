{{/* Name of the Deployment, its ServiceAccount and its ClusterRole. It does not depend on the release: there is one hub in a namespace. */}}
{{- define "hub.name" -}}
attest-gitops-controller
{{- end }}

{{- define "hub.selector" -}}
app: {{ include "hub.name" . }}
{{- end }}

{{- define "hub.labels" -}}
{{ include "hub.selector" . }}
app.kubernetes.io/name: {{ include "hub.name" . }}
app.kubernetes.io/part-of: attest
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "hub.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "hub.claim" -}}
{{ .Values.persistence.existingClaim | default "attest-gitops-home" }}
{{- end }}
