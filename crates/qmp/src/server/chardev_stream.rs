//! A character device as a stream, for monitors on a terminal, a pseudo-terminal or a multiplexer.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use chardev::{CharBackend, CharEvent, CharReceiver};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Input that waits for the session; more waits in the device.
const INPUT_BYTES: usize = 4096;

#[derive(Debug, Default)]
struct State {
    input: VecDeque<u8>,
    open: bool,
    /// Someone connected since the last session began; they may have left again, as a pipe's writer
    /// does once it has written, and still want their answers.
    arrived: bool,
    /// Whom the session serves has left, even if the next one is there already: the stream ends when
    /// the input is read, and input of the next one waits in the device until its session begins.
    left: bool,
    waker: Option<Waker>,
}

impl State {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wake_later(&mut self, cx: &Context<'_>) {
        self.waker = Some(cx.waker().clone());
    }
}

/// A poisoned lock only means that another thread panicked between two complete updates.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device's side of the stream.
struct Receiver(Arc<Mutex<State>>);

impl CharReceiver for Receiver {
    fn can_receive(&self) -> usize {
        let state = lock(&self.0);
        if state.left { 0 } else { INPUT_BYTES.saturating_sub(state.input.len()) }
    }

    fn receive(&self, data: &[u8]) {
        let mut state = lock(&self.0);
        state.input.extend(data);
        state.wake();
    }

    fn event(&self, event: CharEvent) {
        let mut state = lock(&self.0);
        match event {
            CharEvent::Opened => (state.open, state.arrived) = (true, true),
            CharEvent::Closed => (state.open, state.left) = (false, true),
            CharEvent::Break => return,
        }
        state.wake();
    }

    fn writable(&self) {
        lock(&self.0).wake();
    }
}

/// A character device as a stream. It ends when nobody is connected, and may begin anew.
pub(super) struct ChardevStream {
    backend: Arc<dyn CharBackend>,
    state: Arc<Mutex<State>>,
}

impl ChardevStream {
    /// Becomes the device's front end.
    pub(super) fn attach(backend: Arc<dyn CharBackend>) -> ChardevStream {
        let state = Arc::new(Mutex::new(State::default()));
        backend.set_receiver(Box::new(Receiver(state.clone())));
        ChardevStream { backend, state }
    }

    /// Waits until someone has connected since the last time.
    pub(super) async fn opened(&self) {
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.state);
            if std::mem::take(&mut state.arrived) {
                state.left = !state.open;
                return Poll::Ready(());
            }
            state.wake_later(cx);
            Poll::Pending
        })
        .await;
        self.backend.accept_input();
    }
}

impl AsyncRead for &ChardevStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = lock(&self.state);
        if state.input.is_empty() {
            if state.left || !state.open {
                return Poll::Ready(Ok(()));
            }
            state.wake_later(cx);
            return Poll::Pending;
        }
        let (front, _) = state.input.as_slices();
        let count = front.len().min(buffer.remaining());
        buffer.put_slice(&front[..count]);
        state.input.drain(..count);
        drop(state);
        self.backend.accept_input();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for &ChardevStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        // Before the attempt: there may be room between it and the registration.
        let mut state = lock(&self.state);
        if state.left && state.arrived {
            // Meant for one who left, not for the next.
            return Poll::Ready(Ok(data.len()));
        }
        state.wake_later(cx);
        drop(state);
        match self.backend.write(data) {
            0 if !data.is_empty() => Poll::Pending,
            count => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
