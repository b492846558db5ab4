//! Storage behind one handle: a thread per store in production, a task with simulated latency in simulation (DESIGN 2). Work on one
//! store is done one after the other, in the order given.

use super::NodeError;
use crate::telemetry::Telemetry;
use prometheus_client::metrics::gauge::Gauge;
use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};

/// What a store is about to do: what a simulated latency may depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StorageWork {
    /// One fsync of the log over so many records.
    Persist {
        /// How many.
        record_count: usize,
    },
    /// The row store reads.
    RowsRead,
    /// The row store changes something.
    RowsWrite,
    /// The register is read.
    RegisterRead,
    /// The register is written.
    RegisterSwap,
}

/// How long a piece of work takes in simulation. Half of it passes before the work is done and half after, so that a crash finds work
/// that is done and not answered as well as work that is not done.
pub type Latency = Arc<dyn Fn(StorageWork) -> Duration + Send + Sync>;

/// How stores are run.
#[derive(Clone)]
pub enum StorageMode {
    /// Each on a thread of its own: production.
    Threads,
    /// Each in a task, in line, with a latency on tokio's clock: simulation.
    Inline(Latency),
}

impl fmt::Debug for StorageMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Threads => "Threads",
            Self::Inline(_) => "Inline",
        })
    }
}

/// A store at work. Holds back what the store has not yet room for; the machine bounds how much that can be.
pub(super) struct Worker<J, A> {
    part: &'static str,
    jobs: mpsc::Sender<J>,
    answers: mpsc::Receiver<A>,
    waiting: VecDeque<J>,
    running: usize,
    window: usize,
    /// Tells how many jobs are not answered.
    depth: Gauge,
    /// The task, in line. A thread is known to have ended when its end of `answers` is dropped.
    task: JoinSet<()>,
}

impl<J: Send + 'static, A: Send + 'static> Worker<J, A> {
    /// Starts it. At most `window` jobs are handed to it before one is answered. `failed` says of an answer whether to count an error.
    pub(super) fn start(
        part: &'static str,
        mode: &StorageMode,
        telemetry: &Telemetry,
        window: usize,
        classify: fn(&J) -> StorageWork,
        failed: fn(&A) -> bool,
        mut work: impl FnMut(J) -> A + Send + 'static,
    ) -> Result<Self, NodeError> {
        let alone = |_: &J| false;
        let one_by_one = move |jobs: Vec<J>| jobs.into_iter().map(&mut work).collect();
        Self::start_gathering(part, mode, telemetry, window, classify, failed, alone, one_by_one)
    }

    /// As [`Self::start`], for a store that does several jobs at once, if `gathers` says so of each: as many of those as wait one behind the
    /// other are handed to it together, never past another. `work` gives an answer for each, in their order.
    #[expect(clippy::too_many_arguments, reason = "as start, which all others call")]
    pub(super) fn start_gathering(
        part: &'static str,
        mode: &StorageMode,
        telemetry: &Telemetry,
        window: usize,
        classify: fn(&J) -> StorageWork,
        failed: fn(&A) -> bool,
        gathers: fn(&J) -> bool,
        mut work: impl FnMut(Vec<J>) -> Vec<A> + Send + 'static,
    ) -> Result<Self, NodeError> {
        let (jobs, mut taken) = mpsc::channel::<J>(window);
        let (answer, answers) = mpsc::channel(window);
        let mut task = JoinSet::new();
        let depth = telemetry.queue(part);
        let telemetry = telemetry.clone();
        match mode {
            StorageMode::Threads => {
                thread::Builder::new()
                    .name(part.to_owned())
                    .spawn(move || {
                        let mut next = None;
                        'work: while let Some(job) = next.take().or_else(|| taken.blocking_recv()) {
                            let mut jobs = vec![job];
                            while jobs.iter().all(gathers) && next.is_none() {
                                match taken.try_recv() {
                                    Ok(job) if gathers(&job) => jobs.push(job),
                                    Ok(job) => next = Some(job),
                                    Err(_) => break,
                                }
                            }
                            let classes: Vec<StorageWork> = jobs.iter().map(classify).collect();
                            classes.iter().for_each(|class| telemetry.works(*class));
                            let began = Instant::now();
                            for (class, answered) in classes.into_iter().zip(work(jobs)) {
                                telemetry.worked(class, began.elapsed(), failed(&answered));
                                if answer.blocking_send(answered).is_err() {
                                    break 'work;
                                }
                            }
                        }
                        // The store is closed before `answer` is: who waits for that may open it again.
                        drop(work);
                    })
                    .map_err(|source| NodeError::Thread { part, source })?;
            }
            StorageMode::Inline(latency) => {
                let latency = Arc::clone(latency);
                task.spawn(async move {
                    while let Some(job) = taken.recv().await {
                        let class = classify(&job);
                        let whole = latency(class);
                        telemetry.works(class);
                        let before = whole / 2;
                        tokio::time::sleep(before).await;
                        let Some(answered) = work(vec![job]).pop() else { break };
                        tokio::time::sleep(whole.saturating_sub(before)).await;
                        telemetry.worked(class, whole, failed(&answered));
                        if answer.send(answered).await.is_err() {
                            break;
                        }
                    }
                    drop(work);
                });
            }
        }
        Ok(Self { part, jobs, answers, waiting: VecDeque::new(), running: 0, window, depth, task })
    }

    /// Gives it a job. Never blocks.
    pub(super) fn submit(&mut self, job: J) -> Result<(), NodeError> {
        self.waiting.push_back(job);
        self.depth.inc();
        self.pump()
    }

    /// Whether the next job would be started at once.
    pub(super) fn is_free(&self) -> bool {
        self.running < self.window && self.waiting.is_empty()
    }

    fn pump(&mut self) -> Result<(), NodeError> {
        while self.running < self.window {
            let Some(job) = self.waiting.pop_front() else { break };
            // There is room: the channel holds as many as may run.
            self.jobs.try_send(job).map_err(|_| NodeError::Ended(self.part))?;
            self.running += 1;
        }
        Ok(())
    }

    /// The next answer, if there is one now.
    pub(super) fn try_answer(&mut self) -> Result<Option<A>, NodeError> {
        match self.answers.try_recv() {
            Ok(answer) => self.answered(answer).map(Some),
            Err(mpsc::error::TryRecvError::Empty) => Ok(None),
            Err(mpsc::error::TryRecvError::Disconnected) => Err(NodeError::Ended(self.part)),
        }
    }

    /// The next answer. May be dropped and asked again.
    pub(super) async fn answer(&mut self) -> Result<A, NodeError> {
        match self.answers.recv().await {
            Some(answer) => self.answered(answer),
            None => Err(NodeError::Ended(self.part)),
        }
    }

    fn answered(&mut self, answer: A) -> Result<A, NodeError> {
        self.running -= 1;
        self.depth.dec();
        self.pump()?;
        Ok(answer)
    }

    /// Lets it finish what it has begun and closes the store.
    pub(super) fn close(self) -> impl Future<Output = Result<(), NodeError>> + Send {
        let Self { part, jobs, mut answers, mut task, .. } = self;
        drop(jobs);
        async move {
            while answers.recv().await.is_some() {}
            match task.join_next().await {
                None | Some(Ok(())) => Ok(()),
                Some(Err(error)) => Err(ended(part, &error)),
            }
        }
    }
}

fn ended(part: &'static str, error: &JoinError) -> NodeError {
    tracing::error!(part, %error, "a task of the node failed");
    NodeError::Ended(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Measured;
    use tokio::time::Instant;

    fn doubling(mode: &StorageMode, window: usize) -> Worker<u32, u32> {
        Worker::start("doubler", mode, &Telemetry::default(), window, |_| StorageWork::RowsRead, |_| false, |job| job * 2).expect("started")
    }

    #[tokio::test]
    async fn a_thread_answers_in_order_however_much_is_given_at_once() {
        let mut worker = doubling(&StorageMode::Threads, 2);
        for job in 0..100 {
            worker.submit(job).expect("runs");
        }
        assert!(!worker.is_free());
        for job in 0..100 {
            assert_eq!(worker.answer().await.expect("runs"), job * 2);
        }
        assert!(worker.is_free());
        worker.close().await.expect("closed");
    }

    #[tokio::test]
    async fn jobs_that_go_together_are_handed_over_together_and_never_past_another() {
        let (begin, begun) = std::sync::mpsc::channel::<()>();
        let groups = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = Arc::clone(&groups);
        let work = move |jobs: Vec<u32>| {
            begun.recv().expect("a sign to begin");
            seen.lock().expect("not poisoned").push(jobs.clone());
            jobs
        };
        let (even, class) = (|job: &u32| job.is_multiple_of(2), |_: &u32| StorageWork::RowsRead);
        let worker = Worker::start_gathering("store", &StorageMode::Threads, &Telemetry::default(), 8, class, |_| false, even, work);
        let mut worker = worker.expect("started");
        // The first keeps it busy, so that the rest waits.
        let jobs = [1, 2, 4, 6, 3, 5, 8, 10];
        for job in jobs {
            worker.submit(job).expect("runs");
        }
        for _ in 0..jobs.len() {
            begin.send(()).expect("it runs");
        }
        for job in jobs {
            assert_eq!(worker.answer().await.expect("runs"), job);
        }
        worker.close().await.expect("closed");
        assert_eq!(*groups.lock().expect("not poisoned"), [vec![1], vec![2, 4, 6], vec![3], vec![5], vec![8, 10]]);
    }

    #[tokio::test(start_paused = true)]
    async fn in_line_work_takes_its_simulated_time_one_after_the_other() {
        let began = Instant::now();
        let mode = StorageMode::Inline(Arc::new(|_| Duration::from_millis(10)));
        let mut worker = doubling(&mode, 4);
        for job in 0..6 {
            worker.submit(job).expect("runs");
        }
        for job in 0..6 {
            assert_eq!(worker.answer().await.expect("runs"), job * 2);
        }
        let took = began.elapsed();
        assert!((60..80).contains(&took.as_millis()), "{took:?}");
        worker.close().await.expect("closed");
    }

    #[tokio::test]
    async fn work_that_fails_and_work_that_waits_are_counted() {
        for mode in [StorageMode::Threads, StorageMode::Inline(Arc::new(|_| Duration::ZERO))] {
            let telemetry = Telemetry::default();
            let says = |line: &str| telemetry.text(Measured::default()).lines().any(|said| said == line);
            let odd_fail = |job: u32| if job.is_multiple_of(2) { Ok(()) } else { Err(()) };
            let worker = Worker::start("store", &mode, &telemetry, 2, |_| StorageWork::RowsWrite, Result::is_err, odd_fail);
            let mut worker = worker.expect("started");
            for job in 0..7 {
                worker.submit(job).expect("runs");
            }
            assert!(says("twinshard_queue{queue=\"store\"} 7"), "{mode:?}");
            for job in 0..7 {
                assert_eq!(worker.answer().await.expect("runs"), odd_fail(job));
            }
            assert!(says("twinshard_queue{queue=\"store\"} 0"), "{mode:?}");
            assert!(says("twinshard_storage_errors_total{work=\"rows-write\"} 3"), "{mode:?}");
            assert!(says("twinshard_storage_seconds_count{work=\"rows-write\"} 7"), "{mode:?}");
        }
    }

    #[tokio::test]
    async fn a_store_that_panics_is_an_error() {
        let mut worker = Worker::start(
            "breaker",
            &StorageMode::Threads,
            &Telemetry::default(),
            1,
            |_| StorageWork::RowsRead,
            |()| false,
            |job: u32| assert!(job > 1, "planned"),
        )
        .expect("started");
        worker.submit(1).expect("taken");
        assert!(matches!(worker.answer().await, Err(NodeError::Ended("breaker"))));
    }

    #[tokio::test]
    async fn closing_waits_until_the_store_is_closed() {
        struct Store(Arc<std::sync::atomic::AtomicBool>);
        impl Drop for Store {
            fn drop(&mut self) {
                self.0.store(true, std::sync::atomic::Ordering::SeqCst);
            }
        }
        for mode in [StorageMode::Threads, StorageMode::Inline(Arc::new(|_| Duration::ZERO))] {
            let closed = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let store = Store(Arc::clone(&closed));
            let worker = Worker::start(
                "store",
                &mode,
                &Telemetry::default(),
                1,
                |()| StorageWork::RowsRead,
                |()| false,
                move |()| {
                    let _held = &store;
                },
            )
            .expect("started");
            worker.close().await.expect("closed");
            assert!(closed.load(std::sync::atomic::Ordering::SeqCst), "{mode:?}");
        }
    }
}
