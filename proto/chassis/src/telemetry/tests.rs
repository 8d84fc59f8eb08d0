use std::io::Write;

use super::*;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The highest level of `log` is one for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn logged(format: Format, f: impl FnOnce(&Level)) -> String {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let log = Log {
        format,
        ..Log::default()
    };
    let (subscriber, level) = subscriber(&log, move || writer.clone()).unwrap();
    tracing::subscriber::with_default(subscriber, || f(&level));
    let bytes = buffer.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_level_is_changed_and_reset_while_running() {
    let lines = logged(Format::Text, |level| {
        tracing::debug!("one");
        level.set(LogLevel::Debug).unwrap();
        assert_eq!(level.current(), LogLevel::Debug);
        assert_eq!(level.launched(), LogLevel::Info);
        tracing::debug!("two");
        level.set(LogLevel::Fatal).unwrap();
        tracing::error!("three");
        level.reset().unwrap();
        assert_eq!(level.current(), LogLevel::Info);
        tracing::debug!("four");
        tracing::info!("five");
    });
    let words = ["one", "two", "three", "four", "five"];
    let seen = words.map(|word| lines.contains(word));
    assert_eq!(seen, [false, true, false, false, true], "{lines}");
}

/// rustls and sled log through `log`.
#[test]
fn what_libraries_log_follows_the_level_too() {
    init(&Log::default()).unwrap();
    let lines = logged(Format::Text, |level| {
        level.reset().unwrap();
        log::debug!("one");
        log::warn!("two");
        level.set(LogLevel::Debug).unwrap();
        log::debug!("three");
        level.set(LogLevel::Error).unwrap();
        log::warn!("four");
    });
    let words = ["one", "two", "three", "four"];
    let seen = words.map(|word| lines.contains(word));
    assert_eq!(seen, [false, true, true, false], "{lines}");
}

#[test]
fn json_lines_carry_fields_beside_the_message() {
    let line = logged(Format::Json, |_| tracing::info!(entry_id = "e1", "made"));
    assert!(line.contains(r#""message":"made""#), "{line}");
    assert!(line.contains(r#""entry_id":"e1""#), "{line}");
}

#[test]
fn a_level_is_a_word_and_words_for_modules() {
    let level = |text: &str| Wanted::parse(text).map(|wanted| wanted.level).ok();
    for one in LogLevel::ALL {
        assert_eq!(level(one.name()), Some(one));
        assert_eq!(level(&one.name().to_uppercase()), Some(one));
        assert_eq!(LogLevel::from_number(one.number()), Some(one));
    }
    assert_eq!(level("off"), Some(LogLevel::Panic));
    assert_eq!(level("warn,vane_chassis=trace"), Some(LogLevel::Warn));
    assert_eq!(level("vane_chassis=trace"), Some(LogLevel::Panic));
    for wrong in [
        "loud",
        "",
        "info,x=loud",
        "info,=debug",
        "info,",
        "vane_server",
    ] {
        assert_eq!(level(wrong), None, "{wrong}");
    }
    assert_eq!(LogLevel::from_number(0), None);
    assert_eq!(LogLevel::from_number(8), None);
}

#[test]
fn a_named_module_has_a_level_of_its_own() {
    let wanted = Wanted::parse("warn,vane_server::api=debug").unwrap();
    let would = |target| wanted.filter.would_enable(target, &tracing::Level::DEBUG);
    assert!(would("vane_server::api::guard"));
    assert!(!would("vane_server"));
}

#[test]
fn a_detached_level_is_remembered() {
    let level = Level::detached(LogLevel::Warn);
    level.set(LogLevel::Trace).unwrap();
    assert_eq!(level.current(), LogLevel::Trace);
    level.reset().unwrap();
    assert_eq!(level.current(), LogLevel::Warn);
}
