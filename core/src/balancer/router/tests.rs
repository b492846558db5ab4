//! Stories of the router.
