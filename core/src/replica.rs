//! One replica of a shard (DESIGN 4).
