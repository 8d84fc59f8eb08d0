use std::os::unix::fs::PermissionsExt as _;

use vane_chassis::clock::Manual;
use vane_identity::lifetime::from_unix;

use super::*;

fn clock() -> Arc<dyn Clock> {
    Arc::new(Manual::new(from_unix(1_700_000_000)))
}

fn admin(n: usize) -> Leaf {
    Leaf::Admin {
        caller: "local".to_owned(),
        action: "Entry/BatchCreateEntry".to_owned(),
        change_id: n.to_string(),
        detail: Detail::of(&serde_json::json!({ "n": n, "text": "two\nlines" })),
    }
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let parse = |line| serde_json::from_str(line).unwrap();
    text.lines().map(parse).collect()
}

#[tokio::test]
async fn an_acknowledged_append_is_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let log = Log::open(&path, clock()).unwrap();
    log.append(&[admin(1), admin(2)]).await.unwrap();
    let read = lines(&path);
    assert_eq!(read.len(), 2);
    assert_eq!(read[1]["detail"]["n"], 2);
    assert_eq!(read[1]["type"], "admin");
    assert_eq!(read[1]["v"], 1);
    assert_eq!(read[1]["time"], "2023-11-14T22:13:20Z");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn appends_at_once_are_grouped_and_each_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let log = Log::open(&path, clock()).unwrap();
    let batches: Vec<Vec<Leaf>> = (0..200).map(|n| vec![admin(n), admin(n)]).collect();
    let appends = batches.iter().map(|batch| log.append(batch));
    for result in join_all(appends).await {
        result.unwrap();
    }
    let read = lines(&path);
    assert_eq!(read.len(), 400);
    for pair in read.chunks(2) {
        assert_eq!(pair[0]["detail"]["n"], pair[1]["detail"]["n"]);
    }
}

/// Polls all of `futures` together.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, output) in &mut waiting {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
    waiting
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_reported() {
    for torn in [
        &b"{\"v\":1,\"ti"[..],
        b"\0\0\0\0\0",
        b"\0\0\n\0{}\n{\"v\":",
        b"nonsense\n",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let log = Log::open(&path, clock()).unwrap();
        log.append(&[admin(1)]).await.unwrap();
        drop(log);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&good, torn].concat()).unwrap();

        let log = Log::open(&path, clock()).unwrap();
        assert_eq!(log.repaired_bytes(), torn.len() as u64);
        assert_eq!(std::fs::read(&path).unwrap(), good);
        log.append(&[admin(2)]).await.unwrap();
        assert_eq!(lines(&path).len(), 2);
    }
}

#[test]
fn every_cut_of_the_file_opens_at_the_last_whole_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let whole = leaf::lines(&[admin(1), admin(2), admin(3)], from_unix(0)).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        let (_, torn) = Writer::open(&path).unwrap();
        let kept = std::fs::read(&path).unwrap();
        assert_eq!(kept.len() as u64 + torn, len as u64);
        assert!(kept.is_empty() || kept.ends_with(b"\n"));
        lines(&path);
    }
}

#[tokio::test]
async fn a_log_that_cannot_be_written_refuses_or_only_counts() {
    let clock = clock();
    let full = Path::new("/dev/full");
    let (writer, queue) = broken_writer(full);
    let required = log_over(Mode::Required, &clock, queue, writer);
    let error = required.append(&[admin(1)]).await.unwrap_err();
    assert!(
        error.to_string().contains("cannot write the log /dev/full"),
        "{error}"
    );
    assert_eq!(required.failures(), 1);

    let (writer, queue) = broken_writer(full);
    let lenient = log_over(Mode::BestEffort, &clock, queue, writer);
    lenient.append(&[admin(1)]).await.unwrap();
    let failures = Arc::clone(&lenient.failures);
    drop(lenient);
    assert_eq!(failures.load(Ordering::Relaxed), 1);

    assert_eq!(Log::off(clock).append(&[admin(1)]).await.ok(), Some(()));
}

#[tokio::test]
async fn leaves_that_somebody_keeps_are_let_go_once_they_are_durable_and_only_then() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let log = Log::open(&path, clock()).unwrap();
    let (durable, is_durable) = oneshot::channel();
    let told = || durable.send(()).unwrap();
    log.append_kept(&[admin(1)], told).await.unwrap();
    assert_eq!(lines(&path).len(), 1);
    is_durable.await.unwrap();

    let (writer, queue) = broken_writer(Path::new("/dev/full"));
    let full = log_over(Mode::Required, &clock(), queue, writer);
    let (durable, is_durable) = oneshot::channel();
    let told = || durable.send(()).unwrap();
    full.append_kept(&[admin(1)], told).await.unwrap_err();
    assert!(
        is_durable.await.is_err(),
        "told although nothing was written"
    );
}

#[test]
fn a_sync_that_fails_after_the_answer_lets_nothing_go() {
    let (done, mut answered) = oneshot::channel();
    let (durable, mut is_durable) = oneshot::channel::<()>();
    let told: OnceDurable = Box::new(|| durable.send(()).unwrap());
    let mut append = Append::new(Vec::new(), 1, done, Some(told));
    append.is_written();
    assert_eq!(answered.try_recv().unwrap().ok(), Some(()));
    append.end(&Err(LogError::Closed));
    assert!(is_durable.try_recv().is_err());
}

type Parts = (Writer, mpsc::Receiver<Append>);

fn broken_writer(path: &Path) -> (Parts, mpsc::Sender<Append>) {
    let (queue, appends) = mpsc::channel(4);
    ((Writer::unchecked(path), appends), queue)
}

fn log_over(
    mode: Mode,
    clock: &Arc<dyn Clock>,
    queue: mpsc::Sender<Append>,
    (mut writer, appends): Parts,
) -> Log {
    let failures = Arc::new(AtomicU64::new(0));
    writer.count_failures_in(Arc::clone(&failures));
    Log {
        mode,
        vitals: Vitals::new(clock.monotonic()),
        clock: Arc::clone(clock),
        queue: Some(queue),
        writer: Some(std::thread::spawn(move || writer.run(appends))),
        repaired: 0,
        failures,
    }
}

#[tokio::test]
async fn after_an_error_the_file_is_cut_and_writing_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (mut writer, _) = Writer::open(&path).unwrap();
    writer.write(b"{\"n\":1}\n", || ()).unwrap();
    // As an error would leave it: the handle is gone and half a line stands there.
    writer.lose_handle(b"{\"n\":");
    writer.write(b"{\"n\":2}\n", || ()).unwrap();
    let read = lines(&path);
    assert_eq!(read.len(), 2);
    std::fs::write(&path, b"").unwrap();
    writer.lose_handle(b"");
    let error = writer.write(b"{}\n", || ()).unwrap_err().to_string();
    assert!(
        error.contains("shorter than what was acknowledged"),
        "{error}"
    );
}
