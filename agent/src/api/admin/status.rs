//! `vane.status.v1`: how this agent fares, for `vane agent status`.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;
use tonic::{Request, Response, Status};
use vane_chassis::clock::Jump;
use vane_identity::lifetime::{Jitter, to_unix};
use vane_wire::vane::status::v1 as wire;
use vane_wire::vane::status::v1::status_server::Status as StatusApi;

use crate::vitals::Vitals;

/// The service.
pub(super) struct StatusService(pub(super) Arc<Vitals>);

#[tonic::async_trait]
impl StatusApi for StatusService {
    async fn get_status(
        &self,
        _: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        Ok(Response::new(status(&self.0)))
    }
}

fn status(vitals: &Vitals) -> wire::GetStatusResponse {
    let report = vitals.report();
    let now = vitals.clock.now();
    let millis = now.duration_since(std::time::SystemTime::UNIX_EPOCH);
    let own = vitals.own.borrow().clone();
    let counters = &vitals.counters;
    let counts = [
        ("entries", counters.entries.get()),
        ("bundles", counters.bundles.get()),
        ("x509_svids", counters.svids.get()),
        ("jwt_svids", counters.jwt_svids.get()),
        ("jwt_svids_received", counted(&counters.jwt_svids_received)),
        ("jwt_svids_cached", counted(&counters.jwt_svids_cached)),
        ("connections", counters.connections.get()),
        ("streams", counters.streams.get()),
    ];
    let faults = report.findings().iter().map(|finding| wire::Fault {
        fault: finding.fault.name().to_owned(),
        harm: finding.harm.name().to_owned(),
        detail: finding.detail.clone(),
        next: finding.next.clone(),
    });
    let rotations = own.iter().map(|own| wire::Rotation {
        kind: "own_svid".to_owned(),
        id: own.id.to_string(),
        state: String::new(),
        expires_at: to_unix(own.not_after),
        next_at: to_unix(own.renew_at(Jitter::NONE)),
    });
    wire::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        spiffe_id: own
            .as_ref()
            .map(|own| own.id.to_string())
            .unwrap_or_default(),
        time: millis.map_or(0, |since| signed(since.as_millis())),
        uptime: signed(vitals.uptime().as_secs().into()),
        ready: report.is_ready(),
        live: report.is_live(),
        faults: faults.collect(),
        clock: Some(clock(vitals)),
        rotations: rotations.collect(),
        sync: Some(sync(vitals)),
        store: None,
        log: None,
        counts: counts.map(|(name, count)| (name.to_owned(), count)).into(),
    }
}

fn clock(vitals: &Vitals) -> wire::Clock {
    let jumps = vitals.clock.jumps();
    let monotonic = vitals.clock.monotonic();
    let last = jumps.last();
    let skew = vitals.reader.sync().skew_ms;
    wire::Clock {
        jumps: jumps.count(),
        last_jump: last.map_or(0, |last| match last.jump {
            Jump::Forward(by) => signed(by.as_millis()),
            Jump::Backward(by) => -signed(by.as_millis()),
        }),
        last_jump_ago: last.map_or(0, |last| {
            let ago = monotonic.saturating_duration_since(last.noticed);
            signed(ago.as_secs().into())
        }),
        compared: skew.is_some(),
        skew: skew.unwrap_or_default(),
    }
}

fn sync(vitals: &Vitals) -> wire::Sync {
    let sync = vitals.reader.sync();
    let monotonic = vitals.clock.monotonic();
    wire::Sync {
        connected: sync.connected,
        age: sync.heard.map_or(-1, |heard| {
            signed(monotonic.saturating_duration_since(heard).as_secs().into())
        }),
        revision: sync.revision,
        error: sync.error.unwrap_or_default(),
    }
}

fn counted(counter: &Counter) -> i64 {
    i64::try_from(counter.get()).unwrap_or(i64::MAX)
}

fn signed(value: u128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
