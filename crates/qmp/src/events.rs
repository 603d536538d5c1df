//! Events: from any thread of the machine to every session.
//!
//! [`EventBus::publish`] stamps an event with the time of day and puts it into the mailbox of each
//! [`Subscription`]; it never waits for a client. Events that a guest can cause at will are limited to
//! one a second: the first goes out at once, of those that follow within the second the last one goes out
//! when it is over.
//!
//! A mailbox is bounded ([`MAILBOX_BYTES`]): a client that lets it overflow is told so by the end of its
//! connection, since it can't be told which events it missed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use crate::json::{write_compact, write_pretty};

/// Bytes of events that wait for one client.
pub const MAILBOX_BYTES: usize = 4 << 20;

/// An event as it goes out.
#[derive(Debug)]
pub struct Event {
    value: Value,
    compact: OnceLock<Vec<u8>>,
    pretty: OnceLock<Vec<u8>>,
}

impl Event {
    fn new(name: &str, data: Option<Map<String, Value>>, at: SystemTime) -> Event {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = json!({
            "seconds": since.as_secs(),
            "microseconds": since.subsec_micros(),
        });
        let mut value = Map::new();
        value.insert("timestamp".to_owned(), timestamp);
        value.insert("event".to_owned(), name.into());
        if let Some(data) = data {
            value.insert("data".to_owned(), Value::Object(data));
        }
        let value = Value::Object(value);
        Event { value, compact: OnceLock::new(), pretty: OnceLock::new() }
    }

    /// The whole event object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The event as bytes, end of line included; made once for all clients.
    pub(crate) fn line(&self, pretty: bool) -> &[u8] {
        let (cell, write): (_, fn(&Value, &mut Vec<u8>)) =
            if pretty { (&self.pretty, write_pretty) } else { (&self.compact, write_compact) };
        cell.get_or_init(|| {
            let mut line = Vec::new();
            write(&self.value, &mut line);
            line.extend_from_slice(b"\r\n");
            line
        })
    }
}

/// How often an event may go out, and by which member of its data it is told apart.
fn limit_of(name: &str) -> Option<(Duration, Option<&'static str>)> {
    let told_apart_by = match name {
        "RTC_CHANGE" | "WATCHDOG" | "BALLOON_CHANGE" | "QUORUM_FAILURE" => None,
        "QUORUM_REPORT_BAD" => Some("node-name"),
        "VSERPORT_CHANGE" => Some("id"),
        "MEMORY_DEVICE_SIZE_CHANGE" => Some("qom-path"),
        _ => return None,
    };
    Some((Duration::from_secs(1), told_apart_by))
}

/// An event in its second of rest.
#[derive(Debug)]
struct Resting {
    until: Instant,
    interval: Duration,
    pending: Option<Arc<Event>>,
}

/// The rate limits. Time is an argument, so that tests set it.
#[derive(Debug, Default)]
struct Throttle {
    resting: HashMap<(String, String), Resting>,
}

impl Throttle {
    /// Returns the event if it may go out now, and keeps it otherwise.
    fn offer(&mut self, name: &str, event: Arc<Event>, now: Instant) -> Option<Arc<Event>> {
        let Some((interval, member)) = limit_of(name) else { return Some(event) };
        let told_apart = member.and_then(|member| event.value["data"][member].as_str());
        let key = (name.to_owned(), told_apart.unwrap_or_default().to_owned());
        if let Some(resting) = self.resting.get_mut(&key) {
            resting.pending = Some(event);
            return None;
        }
        self.resting.insert(key, Resting { until: now + interval, interval, pending: None });
        Some(event)
    }

    /// The events whose rest is over.
    fn expire(&mut self, now: Instant) -> Vec<Arc<Event>> {
        let mut due = Vec::new();
        self.resting.retain(|_, resting| {
            if resting.until > now {
                return true;
            }
            let Some(event) = resting.pending.take() else { return false };
            due.push(event);
            resting.until = now + resting.interval;
            true
        });
        due
    }

    fn next(&self) -> Option<Instant> {
        self.resting.values().map(|resting| resting.until).min()
    }
}

#[derive(Debug, Default)]
struct Mailbox {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    overflown: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Default)]
struct Inner {
    throttle: Throttle,
    mailboxes: Vec<Weak<Mutex<Mailbox>>>,
}

/// Carries the events of one machine to the sessions of its monitors.
#[derive(Debug, Default)]
pub struct EventBus {
    inner: Mutex<Inner>,
    /// A rest began that may end before all others.
    resting: Notify,
}

/// A poisoned lock only means that another thread panicked between two complete updates.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl EventBus {
    /// A bus without subscribers.
    pub fn new() -> Arc<EventBus> {
        Arc::new(EventBus::default())
    }

    /// Sends an event to all sessions, now or when its rate limit allows it. Callable from any thread.
    pub fn publish(&self, name: &str, data: Option<Map<String, Value>>) {
        let event = Arc::new(Event::new(name, data, SystemTime::now()));
        let mut inner = lock(&self.inner);
        if let Some(event) = inner.throttle.offer(name, event, Instant::now()) {
            inner.deliver(&event);
        }
        drop(inner);
        if limit_of(name).is_some() {
            self.resting.notify_one();
        }
    }

    /// Sends an event of the schema: see [`EventBus::publish`].
    pub fn send(&self, event: &schema::Event) {
        let data = match event.data() {
            Some(Value::Object(data)) => Some(data),
            _ => None,
        };
        self.publish(event.name(), data);
    }

    /// Begins to collect events.
    pub fn subscribe(&self) -> Subscription {
        let mailbox = Arc::new(Mutex::new(Mailbox::default()));
        lock(&self.inner).mailboxes.push(Arc::downgrade(&mailbox));
        Subscription { mailbox }
    }

    /// Sends the events held back by rate limits when their time has come; runs until it is dropped.
    pub async fn run_timers(&self) {
        loop {
            let next = {
                let mut inner = lock(&self.inner);
                for event in inner.throttle.expire(Instant::now()) {
                    inner.deliver(&event);
                }
                inner.throttle.next()
            };
            match next {
                None => self.resting.notified().await,
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.resting.notified() => {}
                    }
                }
            }
        }
    }
}

impl Inner {
    fn deliver(&mut self, event: &Arc<Event>) {
        self.mailboxes.retain(|mailbox| {
            let Some(mailbox) = mailbox.upgrade() else { return false };
            let mut mailbox = lock(&mailbox);
            let size = event.line(false).len();
            if mailbox.bytes + size > MAILBOX_BYTES {
                mailbox.overflown = true;
            } else {
                mailbox.bytes += size;
                mailbox.events.push_back(event.clone());
            }
            if let Some(waker) = mailbox.waker.take() {
                waker.wake();
            }
            true
        });
    }
}

/// The client missed events because it didn't read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// The events since [`EventBus::subscribe`], in order.
#[derive(Debug)]
pub struct Subscription {
    mailbox: Arc<Mutex<Mailbox>>,
}

impl Subscription {
    /// The next event, if there is one.
    pub fn take(&self) -> Result<Option<Arc<Event>>, Overflow> {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.overflown {
            return Err(Overflow);
        }
        let event = mailbox.events.pop_front();
        if let Some(event) = &event {
            mailbox.bytes -= event.line(false).len();
        }
        Ok(event)
    }

    /// As [`Subscription::take`], and wakes the task when there is one later.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Result<Arc<Event>, Overflow>> {
        let mut mailbox = lock(&self.mailbox);
        if mailbox.overflown || !mailbox.events.is_empty() {
            drop(mailbox);
            return match self.take() {
                Ok(Some(event)) => Poll::Ready(Ok(event)),
                Ok(None) => Poll::Pending,
                Err(overflow) => Poll::Ready(Err(overflow)),
            };
        }
        match &mut mailbox.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The next event.
    pub async fn next(&self) -> Result<Arc<Event>, Overflow> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: Value) -> Arc<Event> {
        Arc::new(Event::new(name, data.as_object().cloned(), SystemTime::now()))
    }

    #[test]
    fn of_a_burst_the_first_and_the_last_go_out() {
        let mut throttle = Throttle::default();
        let start = Instant::now();
        let balloon = |n: u64| event("BALLOON_CHANGE", json!({ "actual": n }));
        assert!(throttle.offer("BALLOON_CHANGE", balloon(1), start).is_some());
        for n in 2..10 {
            assert!(throttle.offer("BALLOON_CHANGE", balloon(n), start).is_none());
        }
        assert!(throttle.expire(start + Duration::from_millis(999)).is_empty());
        let second = start + Duration::from_secs(1);
        let due = throttle.expire(second);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].value["data"]["actual"], 9);
        // It went out at the end of the second: the next one rests again.
        assert!(throttle.offer("BALLOON_CHANGE", balloon(10), second).is_none());
        assert_eq!(throttle.expire(second + Duration::from_secs(1)).len(), 1);
        assert!(throttle.expire(second + Duration::from_secs(2)).is_empty());
        assert_eq!(throttle.next(), None);
        assert!(
            throttle
                .offer("BALLOON_CHANGE", balloon(11), second + Duration::from_secs(2))
                .is_some()
        );
    }

    #[test]
    fn ports_are_limited_each_by_itself() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        let port = |id: &str| event("VSERPORT_CHANGE", json!({"id": id, "open": true}));
        assert!(throttle.offer("VSERPORT_CHANGE", port("a"), now).is_some());
        assert!(throttle.offer("VSERPORT_CHANGE", port("b"), now).is_some());
        assert!(throttle.offer("VSERPORT_CHANGE", port("a"), now).is_none());
        assert!(throttle.offer("STOP", event("STOP", json!(null)), now).is_some());
        assert!(throttle.offer("STOP", event("STOP", json!(null)), now).is_some());
    }

    #[test]
    fn a_mailbox_nobody_empties_is_bounded() {
        let bus = EventBus::new();
        let idle = bus.subscribe();
        let busy = bus.subscribe();
        let data = json!({"text": "x".repeat(10_000)});
        for _ in 0..1000 {
            bus.publish("BIG", data.as_object().cloned());
            assert!(busy.take().unwrap().is_some());
        }
        assert!(lock(&idle.mailbox).bytes <= MAILBOX_BYTES);
        assert_eq!(idle.take().unwrap_err(), Overflow);
        assert!(busy.take().unwrap().is_none());
    }

    #[test]
    fn the_shape_of_an_event() {
        let at = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_123);
        let event = Event::new("STOP", None, at);
        assert_eq!(
            str::from_utf8(event.line(false)).unwrap(),
            "{\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": 123}, \"event\": \"STOP\"}\r\n"
        );
    }
}
