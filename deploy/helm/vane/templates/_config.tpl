{{/* The two TOML files. Text goes in by toJson, whose strings are TOML's basic strings. */}}
{{- define "vane.server.toml" -}}
{{- $server := index .Values "spire-server" -}}
{{- $spire := .Values.global.spire -}}
{{- $psat := $server.nodeAttestor.k8sPSAT -}}
{{- $agent := include "vane.account" (list . "agent" (index .Values "spire-agent").serviceAccount) -}}
{{- $allowed := default (list (printf "%s:%s" .Release.Namespace $agent)) $psat.serviceAccountAllowList -}}
[server]
trust_domain = {{ toJson $spire.trustDomain }}
log_level = {{ toJson (upper $server.logLevel) }}
log_format = {{ toJson $server.logFormat }}
ca_key_type = {{ toJson $server.caKeyType }}
ca_ttl = {{ toJson $server.caTTL }}
default_x509_svid_ttl = {{ toJson $server.defaultX509SvidTTL }}
default_jwt_svid_ttl = {{ toJson $server.defaultJwtSvidTTL }}
{{- with $server.agentTTL }}
agent_ttl = {{ toJson . }}
{{- end }}
{{- with $server.pruneAttestedNodesExpiredFor }}
prune_attested_nodes_expired_for = {{ toJson . }}
{{- end }}
{{- with $spire.jwtIssuer }}
jwt_issuer = {{ toJson . }}
{{- end }}
{{- with $server.adminIDs }}
admin_ids = {{ toJson . }}
{{- end }}
{{- $subject := $spire.caSubject }}
{{- if or $subject.country $subject.organization $subject.commonName }}

[server.ca_subject]
country = {{ if $subject.country }}[{{ toJson $subject.country }}]{{ else }}[]{{ end }}
organization = {{ if $subject.organization }}[{{ toJson $subject.organization }}]{{ else }}[]{{ end }}
common_name = {{ toJson $subject.commonName }}
{{- end }}

[[node_attestor]]
type = "k8s_psat"

[node_attestor.clusters.{{ toJson $spire.clusterName }}]
service_account_allow_list = {{ toJson $allowed }}
audience = {{ toJson $psat.audience }}
allowed_node_label_keys = {{ toJson $psat.allowedNodeLabelKeys }}
allowed_pod_label_keys = {{ toJson $psat.allowedPodLabelKeys }}

[[bundle_publisher]]
type = "k8s_configmap"

[bundle_publisher.clusters.{{ toJson $spire.clusterName }}]
namespace = {{ toJson .Release.Namespace }}
configmap_name = {{ toJson (include "vane.bundle" .) }}
configmap_key = "bundle.json"
format = "spiffe"

[ratelimit]
attestation = {{ $server.rateLimit.attestation }}
signing = {{ $server.rateLimit.signing }}

[telemetry]
ops_address = "0.0.0.0:9442"
{{- with $server.extraConfig }}

{{ . }}
{{- end }}
{{- end }}

{{- define "vane.agent.toml" -}}
{{- $agent := index .Values "spire-agent" -}}
{{- $k8s := $agent.workloadAttestors.k8s -}}
{{- $verification := $k8s.verification -}}
[agent]
trust_domain = {{ toJson .Values.global.spire.trustDomain }}
server_address = {{ toJson (default (printf "%s-server" (include "vane.fullname" .)) $agent.server.address) }}
server_port = {{ $agent.server.port }}
socket_path = {{ toJson (printf "/run/vane/%s" (base $agent.socketPath)) }}
{{- with without $agent.socketAlternate.names (base $agent.socketPath) }}
socket_aliases = {{ toJson . }}
{{- end }}
admin_socket_path = "/run/vane-agent/admin.sock"
seal_key_dir = "/run/vane-agent"
trust_bundle_path = "/run/vane-bundle/bundle.json"
trust_bundle_format = "spiffe"
log_level = {{ toJson $agent.logLevel }}
log_format = {{ toJson $agent.logFormat }}

[node_attestor]
type = "k8s_psat"
cluster = {{ toJson .Values.global.spire.clusterName }}

[[workload_attestor]]
type = "k8s"
disable_container_selectors = {{ $k8s.disableContainerSelectors }}
{{- if eq $verification.type "skip" }}
skip_kubelet_verification = true
{{- else if eq $verification.type "hostCert" }}
kubelet_ca_path = {{ toJson (printf "/run/kubelet-pki/%s" $verification.hostCert.fileName) }}
{{- end }}
{{- if $agent.workloadAttestors.unix.enabled }}

[[workload_attestor]]
type = "unix"
{{- end }}

[telemetry]
ops_address = "0.0.0.0:9443"
{{- with $agent.extraConfig }}

{{ . }}
{{- end }}
{{- end }}
