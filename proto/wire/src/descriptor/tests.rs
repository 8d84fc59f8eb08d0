use super::*;

/// Renders a service as `Method(Request) -> [stream ]Response`, one per line.
fn methods(service: &str) -> Vec<String> {
    let service = descriptor_pool().get_service_by_name(service).unwrap();
    let arrow = |stream: bool| if stream { "stream " } else { "" };
    service
        .methods()
        .map(|method| {
            format!(
                "{}({}{}) -> {}{}",
                method.name(),
                arrow(method.is_client_streaming()),
                method.input().full_name(),
                arrow(method.is_server_streaming()),
                method.output().full_name()
            )
        })
        .collect()
}

/// Renders a message as `number name kind`, joined by `; `.
fn fields(message: &str) -> String {
    let message = descriptor_pool().get_message_by_name(message).unwrap();
    let fields: Vec<String> = message
        .fields()
        .map(|field| format!("{} {} {}", field.number(), field.name(), kind(&field)))
        .collect();
    fields.join("; ")
}

fn kind(field: &prost_reflect::FieldDescriptor) -> String {
    use prost_reflect::Kind;
    let kind = field.kind();
    match &kind {
        Kind::Message(entry) if field.is_map() => {
            let value = entry.map_entry_value_field().kind();
            format!("map<{:?},{value:?}>", entry.map_entry_key_field().kind())
        }
        Kind::Message(message) if field.is_list() => format!("repeated {}", message.full_name()),
        Kind::Message(message) => message.full_name().to_owned(),
        other if field.is_list() => format!("repeated {other:?}"),
        other => format!("{other:?}"),
    }
}

/// The Workload API is what the standard says, by number, name, type and kind of stream.
///
/// Proves: WEP-28, WAPI-04.
#[test]
fn the_workload_api_is_that_of_the_standard() {
    assert_eq!(
        methods("SpiffeWorkloadAPI"),
        [
            "FetchX509SVID(X509SVIDRequest) -> stream X509SVIDResponse",
            "FetchX509Bundles(X509BundlesRequest) -> stream X509BundlesResponse",
            "FetchJWTSVID(JWTSVIDRequest) -> JWTSVIDResponse",
            "FetchJWTBundles(JWTBundlesRequest) -> stream JWTBundlesResponse",
            "ValidateJWTSVID(ValidateJWTSVIDRequest) -> ValidateJWTSVIDResponse",
            "FetchWITSVID(WITSVIDRequest) -> stream WITSVIDResponse",
            "FetchWITBundles(WITBundlesRequest) -> stream WITBundlesResponse",
        ]
    );
    let table = [
        ("X509SVIDRequest", ""),
        (
            "X509SVIDResponse",
            "1 svids repeated X509SVID; 2 crl repeated bytes; 3 federated_bundles map<string,bytes>",
        ),
        (
            "X509SVID",
            "1 spiffe_id string; 2 x509_svid bytes; 3 x509_svid_key bytes; 4 bundle bytes; 5 hint string",
        ),
        ("X509BundlesRequest", ""),
        (
            "X509BundlesResponse",
            "1 crl repeated bytes; 2 bundles map<string,bytes>",
        ),
        (
            "JWTSVIDRequest",
            "1 audience repeated string; 2 spiffe_id string",
        ),
        ("JWTSVIDResponse", "1 svids repeated JWTSVID"),
        (
            "JWTSVID",
            "1 spiffe_id string; 2 svid string; 3 hint string",
        ),
        ("JWTBundlesRequest", ""),
        ("JWTBundlesResponse", "1 bundles map<string,bytes>"),
        ("ValidateJWTSVIDRequest", "1 audience string; 2 svid string"),
        (
            "ValidateJWTSVIDResponse",
            "1 spiffe_id string; 2 claims google.protobuf.Struct",
        ),
        ("WITSVIDRequest", "1 spiffe_id string"),
        ("WITSVIDResponse", "1 svids repeated WITSVID"),
        (
            "WITSVID",
            "1 spiffe_id string; 2 wit_svid string; 3 wit_svid_key string; 4 hint string",
        ),
        ("WITBundlesRequest", ""),
        ("WITBundlesResponse", "1 bundles map<string,string>"),
    ];
    for (message, expected) in table {
        assert_eq!(fields(message), expected, "{message}");
    }
}

#[test]
fn every_service_has_the_methods_that_spire_has() {
    let table = [
        ("spire.api.server.agent.v1.Agent", 9),
        ("spire.api.server.bundle.v1.Bundle", 11),
        ("spire.api.server.debug.v1.Debug", 1),
        ("spire.api.server.entry.v1.Entry", 8),
        ("spire.api.server.localauthority.v1.LocalAuthority", 17),
        ("spire.api.server.logger.v1.Logger", 3),
        ("spire.api.server.svid.v1.SVID", 7),
        ("spire.api.server.trustdomain.v1.TrustDomain", 6),
        ("spire.agent.debug.v1.Debug", 1),
        ("spire.api.agent.delegatedidentity.v1.DelegatedIdentity", 4),
        ("spire.api.agent.logger.v1.Logger", 3),
        ("envoy.service.secret.v3.SecretDiscoveryService", 3),
        ("SpiffeWorkloadAPI", 7),
        ("vane.status.v1.Status", 1),
        ("vane.sync.v1.Sync", 1),
    ];
    let mut known: Vec<String> = descriptor_pool()
        .services()
        .map(|service| format!("{} {}", service.full_name(), service.methods().count()))
        .collect();
    let mut expected: Vec<String> = table.map(|(name, count)| format!("{name} {count}")).into();
    known.sort();
    expected.sort();
    assert_eq!(known, expected);
}

#[test]
fn bidirectional_streams_are_those_of_spire() {
    let streams: Vec<String> = descriptor_pool()
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .filter(prost_reflect::MethodDescriptor::is_client_streaming)
        .map(|method| {
            assert!(method.is_server_streaming());
            method.full_name().to_owned()
        })
        .collect();
    for name in [
        "spire.api.server.agent.v1.Agent.AttestAgent",
        "spire.api.server.entry.v1.Entry.SyncAuthorizedEntries",
        "envoy.service.secret.v3.SecretDiscoveryService.StreamSecrets",
        "envoy.service.secret.v3.SecretDiscoveryService.DeltaSecrets",
        "vane.sync.v1.Sync.Watch",
    ] {
        assert!(streams.iter().any(|one| one == name), "{name}");
    }
    assert_eq!(streams.len(), 5);
}

/// A table of SPIRE.md 3.9 and 3.10 for the messages whose numbers are out of order or
/// whose integer types differ.
#[test]
fn messages_have_spires_numbers_and_integer_types() {
    const TYPES: &str = "spire.api.types";
    const SERVER: &str = "spire.api.server";
    let table = [
        (
            TYPES,
            "Entry",
            "1 id string; 2 spiffe_id spire.api.types.SPIFFEID; 3 parent_id spire.api.types.SPIFFEID; 4 selectors repeated spire.api.types.Selector; 5 x509_svid_ttl int32; 6 federates_with repeated string; 7 admin bool; 8 downstream bool; 9 expires_at int64; 10 dns_names repeated string; 11 revision_number int64; 12 store_svid bool; 13 jwt_svid_ttl int32; 14 hint string; 15 created_at int64; 16 additional_attributes spire.api.types.Entry.AdditionalAttributes",
        ),
        (
            TYPES,
            "Bundle",
            "1 trust_domain string; 2 x509_authorities repeated spire.api.types.X509Certificate; 3 jwt_authorities repeated spire.api.types.JWTKey; 4 refresh_hint int64; 5 sequence_number uint64; 6 wit_authorities repeated spire.api.types.WITKey",
        ),
        (
            TYPES,
            "X509SVID",
            "1 cert_chain repeated bytes; 2 id spire.api.types.SPIFFEID; 3 expires_at int64; 4 hint string",
        ),
        (
            TYPES,
            "Agent",
            "1 id spire.api.types.SPIFFEID; 2 attestation_type string; 3 x509svid_serial_number string; 4 x509svid_expires_at int64; 5 selectors repeated spire.api.types.Selector; 6 banned bool; 7 can_reattest bool; 8 agent_version string",
        ),
        (
            TYPES,
            "BundleMask",
            "2 x509_authorities bool; 3 jwt_authorities bool; 4 refresh_hint bool; 5 sequence_number bool; 6 wit_authorities bool",
        ),
        (TYPES, "JoinToken", "1 value string; 2 expires_at int64"),
        (TYPES, "Status", "1 code int32; 2 message string"),
        (
            SERVER,
            "bundle.v1.AppendBundleRequest",
            "1 x509_authorities repeated spire.api.types.X509Certificate; 2 jwt_authorities repeated spire.api.types.JWTKey; 3 output_mask spire.api.types.BundleMask; 4 wit_authorities repeated spire.api.types.WITKey",
        ),
        (
            SERVER,
            "agent.v1.CreateJoinTokenRequest",
            "1 ttl int32; 2 token string; 3 agent_id spire.api.types.SPIFFEID",
        ),
        (
            SERVER,
            "agent.v1.PostStatusRequest",
            "1 current_bundle_serial uint64; 2 agent_version string",
        ),
        (
            SERVER,
            "agent.v1.AttestAgentRequest",
            "1 params spire.api.server.agent.v1.AttestAgentRequest.Params; 2 challenge_response bytes",
        ),
        (
            SERVER,
            "entry.v1.SyncAuthorizedEntriesResponse",
            "1 entry_revisions repeated spire.api.server.entry.v1.EntryRevision; 2 entries repeated spire.api.types.Entry; 3 more bool",
        ),
        (
            SERVER,
            "svid.v1.MintX509SVIDRequest",
            "1 csr bytes; 2 ttl int32",
        ),
        (
            SERVER,
            "debug.v1.GetInfoResponse",
            "1 svid_chain repeated spire.api.server.debug.v1.GetInfoResponse.Cert; 2 uptime int32; 3 agents_count int32; 4 federated_bundles_count int32; 5 entries_count int32",
        ),
    ];
    for (package, message, expected) in table {
        assert_eq!(fields(&format!("{package}.{message}")), expected);
    }
}

#[test]
fn records_on_disk_are_not_among_the_descriptors() {
    let pool = descriptor_pool();
    assert!(pool.get_message_by_name("vane.store.v1.Entry").is_none());
    assert!(pool.get_message_by_name("vane.sync.v1.Hello").is_some());
    assert!(pool.get_message_by_name("google.protobuf.Struct").is_some());
}

#[test]
fn an_unknown_arm_of_a_watch_message_is_skipped() {
    use crate::generated::vane::sync::v1::WatchResponse;
    use prost::Message as _;
    // Field 99, length-delimited, two bytes.
    let later = [0x9a, 0x06, 0x02, 0x08, 0x01];
    let read = WatchResponse::decode(later.as_slice()).unwrap();
    assert_eq!(read, WatchResponse { response: None });
}
