//! Panics of machines, caught and kept quiet: inside a run they are violations, not noise.

use std::{cell::RefCell, io::Write as _, panic, sync::Once};

/// What becomes of a panic.
#[derive(Clone, Debug)]
enum Then {
    /// It is kept: a run catches it.
    Kept,
    /// The process ends, and says how to see it again.
    Ends { reproduce: String },
}

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
    static WATCHED: RefCell<Option<Then>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// While this lives, panics of this thread are not printed as usual.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Keeps what panics of this thread say, for [`take`].
    #[must_use]
    pub fn begin() -> Self {
        Self::and(Then::Kept)
    }

    /// Ends the process at a panic of this thread, with what it says: for runs inside of a runtime. Tokio's shuts itself down when a task
    /// panics, and does so while it holds its scheduler: a `JoinSet` that is dropped then panics in its turn, twice, and nothing catches that.
    #[must_use]
    pub fn ending(reproduce: String) -> Self {
        Self::and(Then::Ends { reproduce })
    }

    fn and(then: Then) -> Self {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| match WATCHED.with_borrow(Clone::clone) {
                None => before(info),
                Some(Then::Kept) if cfg!(panic = "abort") => {
                    // Nothing can be caught in this build profile: say what there is to say and end as for any violation.
                    end(info, "build with --profile explore to see the seed and to shrink it");
                }
                Some(Then::Kept) => LAST.set(Some(info.to_string().replace('\n', " "))),
                Some(Then::Ends { reproduce }) => end(info, &format!("reproduce: {reproduce}")),
            }));
        });
        WATCHED.set(Some(then));
        Self(())
    }
}

fn end(info: &panic::PanicHookInfo<'_>, what_next: &str) -> ! {
    // Not by a macro: inside of a test that would be kept for a report which never comes.
    let _ = writeln!(std::io::stderr(), "VIOLATION panic: {info}\n{what_next}");
    std::process::exit(1)
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.set(None);
    }
}

/// Takes what the last panic of this thread said, and where.
#[must_use]
pub fn take() -> Option<String> {
    LAST.take()
}
