//! Panics of machines, caught and kept quiet: inside a run they are violations, not noise.

use std::{cell::RefCell, panic, sync::Once};

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
    static WATCHED: RefCell<bool> = const { RefCell::new(false) };
}

static HOOK: Once = Once::new();

/// While this lives, panics of this thread are kept instead of printed.
#[derive(Debug)]
pub struct Watch(());

impl Watch {
    /// Begins to watch this thread.
    #[must_use]
    pub fn begin() -> Self {
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                if WATCHED.with_borrow(|watched| *watched) {
                    if cfg!(panic = "abort") {
                        // Nothing can be caught in this build profile: say what there is to say and end as for any violation.
                        eprintln!("VIOLATION panic: {info}\nbuild with --profile explore to see the seed and to shrink it");
                        std::process::exit(1);
                    }
                    LAST.set(Some(info.to_string().replace('\n', " ")));
                } else {
                    before(info);
                }
            }));
        });
        WATCHED.set(true);
        Self(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.set(false);
    }
}

/// Takes what the last panic of this thread said, and where.
#[must_use]
pub fn take() -> Option<String> {
    LAST.take()
}
