//! Work that goes on while a test attaches, records and detaches, in rounds each of which is checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crate::process::PATIENCE;

/// Threads that each do one round after the other until they are stopped.
#[derive(Debug)]
pub struct Load {
    workers: Vec<Worker>,
    stopping: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Worker {
    /// A message for each round.
    done: Receiver<()>,
    thread: JoinHandle<()>,
}

impl Load {
    /// Starts a thread for each of these; it is given the number of the round, and panics where an answer is wrong.
    pub fn start<R: FnMut(u64) + Send + 'static>(rounds: impl IntoIterator<Item = R>) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let workers = rounds.into_iter().map(|round| Worker::start(round, Arc::clone(&stopping))).collect();
        Self { workers, stopping }
    }

    /// Waits until every thread has begun and ended so many rounds from now on.
    #[track_caller]
    pub fn advance(&self, rounds: u64) {
        let deadline = Instant::now() + PATIENCE;
        for worker in &self.workers {
            while worker.done.try_recv().is_ok() {}
            // The first to end may have begun before.
            for _ in 0..=rounds {
                match worker.done.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => panic!("the load ended by itself"),
                    Err(RecvTimeoutError::Timeout) => panic!("no {rounds} rounds within {PATIENCE:?}"),
                }
            }
        }
    }

    /// Has every thread end its round, and waits for it; panics where one of them has.
    #[track_caller]
    pub fn stop(self) {
        self.stopping.store(true, Ordering::Relaxed);
        for worker in self.workers {
            assert!(worker.thread.join().is_ok(), "an answer was wrong, as is said above");
        }
    }
}

/// What somebody is asked to do in between.
type Errand<C> = Box<dyn FnOnce(&mut C) + Send>;

/// Somebody who does one round after the other, and other things in between when asked to: of whom there is only one, as of a
/// connection.
#[derive(Debug)]
pub struct Busy<C> {
    load: Load,
    errands: Sender<Errand<C>>,
}

impl<C: Send + 'static> Busy<C> {
    /// Starts a thread for the rounds.
    pub fn start(mut client: C, check: impl Fn(&mut C, u64) + Send + 'static) -> Self {
        let (errands, asked) = mpsc::channel::<Errand<C>>();
        let round = move |number| {
            for errand in asked.try_iter() {
                errand(&mut client);
            }
            check(&mut client, number);
        };
        Self { load: Load::start([round]), errands }
    }

    /// The rounds.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Has something done in between, and waits for what comes of it.
    #[track_caller]
    pub fn ask<T: Send + 'static>(&self, what: impl FnOnce(&mut C) -> T + Send + 'static) -> T {
        let (sender, done) = mpsc::channel();
        // It fails where the load has ended, and then there is no answer either.
        let _ = self.errands.send(Box::new(move |client| {
            let _ = sender.send(what(client));
        }));
        done.recv_timeout(PATIENCE).unwrap_or_else(|err| panic!("no answer of who is busy: {err}"))
    }

    /// Has the round end, and waits for it; panics where it has.
    #[track_caller]
    pub fn stop(self) {
        self.load.stop();
    }
}

impl Worker {
    fn start(mut round: impl FnMut(u64) + Send + 'static, stopping: Arc<AtomicBool>) -> Self {
        let (sender, done) = mpsc::channel();
        let thread = thread::spawn(move || {
            for number in 0.. {
                round(number);
                if sender.send(()).is_err() || stopping.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        Self { done, thread }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_counted_from_when_they_are_asked_for() {
        let (sender, seen) = mpsc::channel();
        let load = Load::start([move |number| sender.send(number).expect("the test reads until the end")]);
        load.advance(3);
        let before = seen.try_iter().last().expect("there were rounds");
        load.advance(3);
        assert!(seen.try_iter().last().expect("there were more") >= before + 3);
        load.stop();
    }

    #[test]
    fn who_is_busy_answers_in_between() {
        let busy = Busy::start(0, |sum: &mut u64, number| *sum += number);
        busy.load().advance(3);
        let sum = busy.ask(|sum| *sum);
        assert!(sum >= 3, "{sum}");
        busy.load().advance(1);
        assert!(busy.ask(|sum| *sum) > sum);
        busy.stop();
    }

    #[test]
    #[should_panic(expected = "an answer was wrong")]
    fn a_wrong_answer_is_not_lost() {
        Load::start([|_| panic!("this is wrong")]).stop();
    }

    #[test]
    #[should_panic(expected = "ended by itself")]
    fn nothing_is_waited_for_that_does_not_come() {
        Load::start([|number| assert!(number < 2, "this is wrong")]).advance(1000);
    }
}
