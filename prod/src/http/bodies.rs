//! The bodies of requests: each is read in time and up to a bound, and all that are under way have a bound together. One that does not fit
//! beside the others is refused at once: nobody waits for room.

use super::{HttpSettings, error::ApiError};
use axum::{
    body::{Body, Bytes},
    http::StatusCode,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::sync::Arc;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// What one value of JSON takes in memory, beside what stands of it in the body. Measured: 130 bytes in rows of three columns, 70 in a list of
/// numbers, 230 in objects of one field. A long text is there
/// once more beside that.
pub(super) const VALUE_BYTES: usize = 128;

/// The room for bodies unless another is asked for, in bytes. The largest body with the most values takes 308 MiB. A guess.
pub const BODIES_BYTES_MAX: usize = 384 << 20;

/// The room for bodies.
#[derive(Clone, Debug)]
pub struct Bodies {
    room: Arc<Semaphore>,
    bytes_max: usize,
}

/// Room that is taken until it is dropped.
#[derive(Debug)]
pub(super) struct Room(OwnedSemaphorePermit);

impl Bodies {
    /// For so many bytes. Fewer than the largest body takes, and that one never fits.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    /// Takes room for a body that has so much already.
    fn take(&self, bytes: usize, taken: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        if bytes.saturating_add(taken) > self.bytes_max {
            return Err(ApiError::body_beyond_memory(self.bytes_max));
        }
        let bytes = u32::try_from(bytes).map_err(|_| ApiError::overloaded())?;
        Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| ApiError::overloaded())
    }
}

impl Room {
    /// Takes more, for values of JSON.
    pub(super) fn add_values(&mut self, bodies: &Bodies, count: usize) -> Result<(), ApiError> {
        self.0.merge(bodies.take(count.saturating_mul(VALUE_BYTES), self.0.num_permits())?);
        Ok(())
    }
}

/// Reads a body to its end. Room is taken for what has come, not for what was announced.
pub(super) async fn read(body: Body, settings: &HttpSettings) -> Result<(Bytes, Room), ApiError> {
    // Told at once, so that a client that asked first (Expect: 100-continue) sends nothing in vain.
    if http_body::Body::size_hint(&body).lower() > settings.body_bytes_max as u64 {
        return Err(ApiError::body_too_large(settings.body_bytes_max));
    }
    match timeout(settings.read_timeout, collect(body, settings)).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "slow-body", "The body did not come in time")),
    }
}

async fn collect(body: Body, settings: &HttpSettings) -> Result<(Bytes, Room), ApiError> {
    let mut body = Limited::new(body, settings.body_bytes_max);
    let (mut bytes, mut room) = (Vec::new(), settings.bodies.take(0, 0)?);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ApiError::body_too_large(settings.body_bytes_max)
            } else {
                ApiError::new(StatusCode::BAD_REQUEST, "bad-body", format!("The body could not be read: {error}"))
            }
        })?;
        // Trailers say nothing.
        let Ok(piece) = frame.into_data() else { continue };
        room.merge(settings.bodies.take(piece.len(), room.num_permits())?);
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes.into(), Room(room)))
}
