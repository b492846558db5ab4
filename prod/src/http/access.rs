//! Who may do what over HTTP: bearer tokens (RFC 6750) of three roles. A token is the content of a file that only its owner can read; it is
//! compared in constant time and never shown.

use super::error::ApiError;
use crate::secret::{Secret, SecretError};
use crate::shown;
use axum::http::{HeaderMap, Method, StatusCode, header};
use std::{path::Path, sync::Arc};

/// The files of the tokens, below one directory.
const FILES: [&str; 3] = ["read.token", "data.token", "admin.token"];

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads of rows, and looking at how the cluster is: for reports, and for what scrapes metrics.
    Read,
    /// Also writes of rows.
    Data,
    /// Everything.
    Admin,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Data => "data",
            Self::Admin => "admin",
        }
    }
}

/// Who is let in.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Everybody who can connect.
    #[default]
    Open,
    /// Who shows a token.
    Tokens(Arc<Tokens>),
}

/// The tokens of a cluster.
#[derive(Debug)]
pub struct Tokens {
    read: Secret,
    data: Secret,
    admin: Secret,
}

impl Tokens {
    /// Reads `read.token`, `data.token` and `admin.token` of a directory.
    ///
    /// # Errors
    /// One is not there, others than its owner may have access, or it is not a token.
    pub fn load(dir: &Path) -> Result<Self, SecretError> {
        let [read, data, admin] = FILES.map(|file| Secret::load(&dir.join(file)));
        Ok(Self { read: read?, data: data?, admin: admin? })
    }

    /// As [`Self::load`]; draws what is not there yet.
    ///
    /// # Errors
    /// As [`Self::load`]; or it cannot be written.
    pub fn load_or_create(dir: &Path) -> Result<Self, SecretError> {
        let [read, data, admin] = FILES.map(|file| Secret::load_or_create(&dir.join(file)));
        Ok(Self { read: read?, data: data?, admin: admin? })
    }

    /// Takes the same time for every text of one length.
    fn role_of(&self, token: &str) -> Option<Role> {
        let each = [(&self.admin, Role::Admin), (&self.data, Role::Data), (&self.read, Role::Read)];
        let each = each.map(|(secret, role)| (secret.is_text(token), role));
        each.into_iter().find_map(|(is_it, role)| is_it.then_some(role))
    }
}

impl Access {
    /// Whether the request may go on.
    ///
    /// # Errors
    /// 401 without a good token, 403 with one that is not enough. Nothing was applied.
    pub(super) fn check(&self, method: &Method, path: &str, headers: &HeaderMap) -> Result<(), ApiError> {
        let Self::Tokens(tokens) = self else { return Ok(()) };
        let Some(needed) = needed(method, path) else { return Ok(()) };
        let Some(shown) = headers.get(header::AUTHORIZATION) else {
            return Err(ApiError::unauthorized("This needs a token: send 'Authorization: Bearer TOKEN'"));
        };
        let token = shown.to_str().ok().and_then(|shown| {
            let (scheme, token) = shown.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        match token.and_then(|token| tokens.role_of(token)) {
            Some(role) if role >= needed => Ok(()),
            Some(role) => {
                let (path, needed, role) = (shown::echo(path), needed.name(), role.name());
                let words = format!("{method} {path} needs the {needed} token; this is the {role} token");
                Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", words))
            }
            None => Err(ApiError::unauthorized("The token is not one of this cluster")),
        }
    }
}

/// Whether this is what tools ask that watch over a node, such as proxies, which may know nothing of it but its address.
pub(super) fn is_probe(path: &str) -> bool {
    matches!(path, "/heartbeat" | "/healthz" | "/readyz")
}

/// Whether this is for who watches over and changes the cluster, rather than for its clients.
pub(super) fn is_of_operators(path: &str) -> bool {
    let others =
        ["/init", "/add", "/rm", "/move", "/drain", "/config", "/rep", "/status", "/explain", "/events", "/metrics", "/openapi.json"];
    is_probe(path) || others.contains(&path) || matches!(path, "/primary_elect" | "/primary-elect")
}

/// What a request needs; `None` for what a probe may ask. What is not known here needs the most.
pub(super) fn needed(method: &Method, path: &str) -> Option<Role> {
    match path {
        "/openapi.json" => None,
        _ if is_probe(path) => None,
        "/home" | "/rep" | "/status" | "/explain" | "/events" | "/metrics" | "/read" | "/copy" | "/get_wal" | "/get_wal_count" => {
            Some(Role::Read)
        }
        "/write" | "/update" | "/del" => Some(Role::Data),
        "/primary_elect" | "/primary-elect" if *method == Method::GET => Some(Role::Read),
        _ if path.starts_with("/read/") => Some(Role::Read),
        _ => Some(Role::Admin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;

    const READ: [u8; 32] = [0x5e; 32];
    const DATA: [u8; 32] = [0xda; 32];
    const ADMIN: [u8; 32] = [0xad; 32];

    fn answer(method: Method, path: &str, shown: Option<&str>) -> Option<StatusCode> {
        let [read, data, admin] = [READ, DATA, ADMIN].map(Secret::new);
        let access = Access::Tokens(Arc::new(Tokens { read, data, admin }));
        let headers = shown.map(|shown| (header::AUTHORIZATION, shown.parse().expect("plain text"))).into_iter().collect();
        access.check(&method, path, &headers).err().map(|error| error.into_response().status())
    }

    #[test]
    fn each_token_opens_what_is_its_own_and_what_is_less() {
        let tokens = [("5e", Role::Read), ("da", Role::Data), ("ad", Role::Admin)]
            .map(|(digits, role)| (format!("Bearer {}", digits.repeat(32)), role));
        for (method, path, needed) in [
            (Method::POST, "/read", Role::Read),
            (Method::GET, "/read/Server0", Role::Read),
            (Method::GET, "/status", Role::Read),
            (Method::GET, "/metrics", Role::Read),
            (Method::GET, "/events", Role::Read),
            (Method::GET, "/copy", Role::Read),
            (Method::GET, "/primary_elect", Role::Read),
            (Method::POST, "/write", Role::Data),
            (Method::PUT, "/update", Role::Data),
            (Method::POST, "/del", Role::Data),
            (Method::POST, "/primary_elect", Role::Admin),
            (Method::POST, "/init", Role::Admin),
            (Method::DELETE, "/rm", Role::Admin),
            (Method::POST, "/not-yet-known", Role::Admin),
        ] {
            assert_eq!(answer(method.clone(), path, None), Some(StatusCode::UNAUTHORIZED), "{path}");
            for (token, role) in &tokens {
                let refused = (*role < needed).then_some(StatusCode::FORBIDDEN);
                assert_eq!(answer(method.clone(), path, Some(token)), refused, "{path} {role:?}");
            }
        }
        for probe in ["/heartbeat", "/healthz", "/readyz", "/openapi.json"] {
            assert_eq!(answer(Method::GET, probe, None), None);
        }
    }

    #[test]
    fn what_is_no_token_opens_nothing() {
        let data = "da".repeat(32);
        for shown in ["", "Bearer", "Bearer ", "Basic ZGFkYQ==", &data, &format!("Bearer {}", &data[1..]), &format!("Bearer {data}0")] {
            assert_eq!(answer(Method::POST, "/read", Some(shown)), Some(StatusCode::UNAUTHORIZED), "{shown}");
        }
        assert_eq!(answer(Method::POST, "/read", Some(&format!("bearer {data}"))), None, "the scheme's case does not matter");
    }
}
