//! `vane server status` and `vane agent status`: one answer in the form for people.

use vane_wire::vane::status::v1 as wire;
use vane_wire::vane::status::v1::status_client::StatusClient;

use tonic::transport::Channel;

use crate::api::{answer, client, request};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Asks the process behind `channel`, and prints what it says.
pub(crate) async fn show(channel: Channel, format: Format) -> Result<(), Failure> {
    let mut client = client!(StatusClient<_>, channel);
    let status = answer(client.get_status(request(wire::GetStatusRequest {})).await)?;
    match format {
        Format::Json => output::json(&status),
        Format::Table => output::raw(&text(&status)),
    }
}

/// `status` for people: what it is, what is wrong and the way out, then the figures.
fn text(status: &wire::GetStatusResponse) -> String {
    let mut lines = vec![
        ("State", state(status)),
        ("Version", status.version.clone()),
        ("SPIFFE ID", status.spiffe_id.clone()),
        ("Uptime", seconds(status.uptime)),
        ("Clock", clock(status)),
    ];
    lines.extend(
        status
            .sync
            .as_ref()
            .map(|sync| ("Server", self::sync(sync))),
    );
    for (name, count) in &status.counts {
        lines.push(("Count", format!("{} {}", count, name.replace('_', " "))));
    }
    lines.extend(status.store.as_ref().map(|one| ("Store", store(one))));
    lines.extend(status.log.as_ref().map(|one| ("Log", log(one))));
    for one in &status.rotations {
        lines.push(("Rotation", rotation(one, status.time / 1_000)));
    }
    let mut out = String::new();
    let mut last = "";
    for (name, value) in lines {
        let shown = if name == last { "" } else { name };
        last = name;
        out.push_str(&format!("{shown:9}  {value}\n"));
    }
    for fault in &status.faults {
        out.push_str(&format!(
            "\n{} ({}): {}\n  next: {}\n",
            fault.fault, fault.harm, fault.detail, fault.next
        ));
    }
    out
}

fn state(status: &wire::GetStatusResponse) -> String {
    let state = match (status.live, status.ready) {
        (false, _) => "dead: a restart helps",
        (true, false) => "not ready",
        (true, true) if status.faults.is_empty() => "ready",
        (true, true) => "ready, but see below",
    };
    state.to_owned()
}

fn clock(status: &wire::GetStatusResponse) -> String {
    let mut text = output::time(status.time / 1_000);
    let Some(clock) = &status.clock else {
        return text;
    };
    if clock.compared {
        let way = if clock.skew < 0 { "behind" } else { "ahead of" };
        text.push_str(&format!(
            ", {} ms {way} the server's",
            clock.skew.unsigned_abs()
        ));
    }
    if clock.jumps > 0 {
        text.push_str(&format!(
            ", {} jumps, the last of {} s {} ago",
            clock.jumps,
            clock.last_jump / 1_000,
            seconds(clock.last_jump_ago)
        ));
    }
    text
}

fn sync(sync: &wire::Sync) -> String {
    let age = match sync.age {
        age if age < 0 => "nothing heard yet".to_owned(),
        age => format!("heard {} ago", seconds(age)),
    };
    match (sync.connected, sync.error.is_empty()) {
        (true, _) => format!("connected, {age}, revision {}", sync.revision),
        (false, true) => format!("not connected, {age}"),
        (false, false) => format!("not connected, {age}: {}", sync.error),
    }
}

fn store(store: &wire::Store) -> String {
    format!(
        "revision {}, confirmed {} ago, {} commits of {} us, {} failures, {} KiB",
        store.revision,
        seconds(store.age),
        store.commits,
        store.commit_micros,
        store.failures,
        store.bytes / 1_024
    )
}

fn log(log: &wire::Log) -> String {
    format!(
        "{}, {} appends of {} us, {} failures, {} waiting",
        log.mode, log.appends, log.append_micros, log.failures, log.waiting
    )
}

fn rotation(one: &wire::Rotation, now: i64) -> String {
    let left = |at: i64| match at - now {
        left if left < 0 => "now".to_owned(),
        left => format!("in {}", seconds(left)),
    };
    let state = if one.state.is_empty() {
        String::new()
    } else {
        format!(" {}", one.state)
    };
    let next = match one.next_at {
        0 => String::new(),
        at => format!(", next step {}", left(at)),
    };
    let kind = one.kind.replace('_', " ");
    let ends = left(one.expires_at);
    format!("{kind}{state} {}: ends {ends}{next}", one.id)
}

fn seconds(seconds: i64) -> String {
    let seconds = u64::try_from(seconds).unwrap_or_default();
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_what_is_wrong_and_the_way_out() {
        let status = wire::GetStatusResponse {
            version: "0.1.0".to_owned(),
            spiffe_id: "spiffe://example.org/spire/agent/x".to_owned(),
            time: 1_700_000_000_000,
            uptime: 3_661,
            ready: true,
            live: true,
            faults: vec![wire::Fault {
                fault: "no_upstream".to_owned(),
                harm: "degraded".to_owned(),
                detail: "connection refused".to_owned(),
                next: "start the server".to_owned(),
            }],
            clock: Some(wire::Clock {
                jumps: 1,
                last_jump: -3_600_000,
                last_jump_ago: 60,
                compared: true,
                skew: -1_500,
            }),
            rotations: vec![wire::Rotation {
                kind: "own_svid".to_owned(),
                id: "x".to_owned(),
                state: String::new(),
                expires_at: 1_700_000_060,
                next_at: 1_700_000_030,
            }],
            sync: Some(wire::Sync {
                connected: false,
                age: 5,
                revision: 7,
                error: "connection refused".to_owned(),
            }),
            store: None,
            log: None,
            counts: [("entries".to_owned(), 3)].into(),
        };
        let want = "State      ready, but see below
Version    0.1.0
SPIFFE ID  spiffe://example.org/spire/agent/x
Uptime     1h 1m 1s
Clock      2023-11-14T22:13:20Z, 1500 ms behind the server's, 1 jumps, the last of -3600 s 1m ago
Server     not connected, heard 5s ago: connection refused
Count      3 entries
Rotation   own svid x: ends in 1m, next step in 30s

no_upstream (degraded): connection refused
  next: start the server
";
        assert_eq!(text(&status), want);
    }
}
