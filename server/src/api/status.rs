//! `vane.status.v1`: how this server fares, for `vane server status`.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use vane_authority::log::Mode;
use vane_chassis::clock::Jump;
use vane_identity::lifetime::to_unix;
use vane_store::kv::Kv as _;
use vane_wire::vane::status::v1 as wire;
use vane_wire::vane::status::v1::status_server::Status as StatusApi;

use super::Parts;
use crate::vitals::Vitals;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct StatusService(pub(super) Arc<Parts>);

#[tonic::async_trait]
impl StatusApi for StatusService {
    async fn get_status(
        &self,
        _: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::GetStatusResponse>, Status> {
        Ok(Response::new(status(&self.0.vitals)))
    }
}

fn status(vitals: &Vitals) -> wire::GetStatusResponse {
    let report = vitals.report();
    let monotonic = vitals.clock.monotonic();
    let uptime = monotonic.saturating_duration_since(vitals.started);
    let now = vitals.clock.now();
    let millis = now.duration_since(std::time::SystemTime::UNIX_EPOCH);
    let counts = vitals.state.counts();
    let counts = [
        ("entries", counts.entries),
        ("agents", counts.agents),
        ("connected_agents", counts.connected),
        ("bundles", counts.bundles),
    ];
    let faults = report.findings().iter().map(|finding| wire::Fault {
        fault: finding.fault.name().to_owned(),
        harm: finding.harm.name().to_owned(),
        detail: finding.detail.clone(),
        next: finding.next.clone(),
    });
    let rotations = vitals.rotations().into_iter().map(|one| wire::Rotation {
        kind: one.kind.to_owned(),
        id: one.id,
        state: one.state.to_owned(),
        expires_at: to_unix(one.expires_at),
        next_at: one.next_at.map_or(0, to_unix),
    });
    let server = vitals.trust_domain.server_id();
    wire::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        spiffe_id: server.map(|id| id.to_string()).unwrap_or_default(),
        time: millis.map_or(0, |since| signed(since.as_millis())),
        uptime: signed(uptime.as_secs().into()),
        ready: report.is_ready(),
        live: report.is_live(),
        faults: faults.collect(),
        clock: Some(clock(vitals)),
        rotations: rotations.collect(),
        sync: None,
        store: Some(store(vitals)),
        log: Some(log(vitals)),
        counts: counts
            .map(|(name, count)| (name.to_owned(), i64::try_from(count).unwrap_or(i64::MAX)))
            .into(),
    }
}

fn clock(vitals: &Vitals) -> wire::Clock {
    let jumps = vitals.clock.jumps();
    let monotonic = vitals.clock.monotonic();
    let last = jumps.last();
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
        compared: false,
        skew: 0,
    }
}

fn store(vitals: &Vitals) -> wire::Store {
    let age = vitals.state.confirmed_age(vitals.clock.monotonic());
    let commits = vitals.store.commits();
    wire::Store {
        revision: vitals.store.revision(),
        age: signed(age.as_secs().into()),
        commits: commits.count(),
        commit_micros: mean(commits.sum_micros(), commits.count()),
        failures: vitals.store.failures(),
        bytes: vitals.store_bytes(),
    }
}

fn log(vitals: &Vitals) -> wire::Log {
    let latency = vitals.log.latency();
    let mode = match vitals.log.mode() {
        Mode::Required => "required",
        Mode::BestEffort => "best-effort",
        Mode::Off => "off",
    };
    wire::Log {
        mode: mode.to_owned(),
        appends: latency.count(),
        append_micros: mean(latency.sum_micros(), latency.count()),
        failures: vitals.log.failures(),
        waiting: vitals.log.health().waiting,
    }
}

fn mean(sum: u64, count: u64) -> u64 {
    sum.checked_div(count).unwrap_or_default()
}

fn signed(value: u128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
