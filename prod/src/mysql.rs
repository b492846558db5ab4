//! A MySQL or MariaDB server, as the row store and the register speak with it.

pub(crate) mod connection;
#[cfg(test)]
pub(crate) mod test_server;

use sqlx::mysql::MySqlConnectOptions;
use std::{fmt, str::FromStr, time::Duration};

/// Where the database server is, who we are to it, and what of it is ours.
#[derive(Clone)]
pub struct MysqlSettings {
    pub(crate) options: MySqlConnectOptions,
    pub(crate) database: String,
    /// How long opening waits for a database that is down.
    pub patience: Duration,
}

impl fmt::Debug for MysqlSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the password.
        f.debug_struct("MysqlSettings")
            .field("host", &self.options.get_host())
            .field("port", &self.options.get_port())
            .field("database", &self.database)
            .finish_non_exhaustive()
    }
}

impl MysqlSettings {
    /// `url` is `mysql://user@host:port/`, without a password; an empty one is none. `database` is ours: the row store puts its name
    /// before those of all databases that it makes.
    ///
    /// # Errors
    /// Why the URL is not one, or the name none.
    pub fn new(url: &str, password: &str, database: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("mysql://").ok_or("a database URL begins with mysql://")?;
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            return Err("the password does not belong into the URL: give it in a file".to_owned());
        }
        let mut options = MySqlConnectOptions::from_str(url).map_err(|error| format!("not a database URL: {error}"))?;
        if !password.is_empty() {
            options = options.password(password);
        }
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if !(1..=20).contains(&database.len()) || !database.bytes().all(is_name) {
            return Err("the name of our database has 1 to 20 lower-case letters, digits and '_'".to_owned());
        }
        Ok(Self { options, database: database.to_owned(), patience: Duration::ZERO })
    }
}

/// An identifier as it stands in a statement. The only way a name gets into one.
pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
