//! Tests that need more than one crate, as one binary. Nothing here is used by anything else.

#[cfg(test)]
mod processes;
#[cfg(test)]
mod tidy;
