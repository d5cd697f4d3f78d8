{{/* What the operator may do where it serves TorchModels. There is no rule for Secrets: kubelet mounts them into pods. */}}
{{- define "torchmodel.rules" -}}
# TorchModels are what the operator acts on; it never writes their spec.
- apiGroups: [serving.torchmodel.dev]
  resources: [torchmodels]
  verbs: [get, list, watch]
# It says in their status how they fare.
- apiGroups: [serving.torchmodel.dev]
  resources: [torchmodels/status]
  verbs: [patch]
# Clusters that check owner references (OpenShift) ask for this before a child may name a TorchModel as its owner.
- apiGroups: [serving.torchmodel.dev]
  resources: [torchmodels/finalizers]
  verbs: [update]
# The pods of a model are a Deployment's. It is written by server-side apply, which creates and patches.
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch]
# Each model has an address.
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch]
# Each revision of a model is a ConfigMap, deleted when no pod needs it any more. A model without a ServiceAccount of its own
# gets one without permissions, deleted when the manifest names another.
- apiGroups: [""]
  resources: [configmaps, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
# Why a pod does not serve stands in its status.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Each change of readiness is an event; the same one again is counted on the first.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
