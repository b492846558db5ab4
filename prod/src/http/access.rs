//! Who may do what over HTTP: bearer tokens (RFC 6750) of two roles. A token is the content of a file that only its owner can read; it is
//! compared in constant time and never shown.

use super::error::ApiError;
use crate::secret::{Secret, SecretError};
use axum::http::{HeaderMap, Method, StatusCode, header};
use std::{path::Path, sync::Arc};

/// The files of the tokens, below one directory.
const FILES: [&str; 2] = ["data.token", "admin.token"];

/// What a token allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Reads and writes of rows, and looking at how the cluster is.
    Data,
    /// Everything.
    Admin,
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
    data: Secret,
    admin: Secret,
}

impl Tokens {
    /// Reads `data.token` and `admin.token` of a directory.
    ///
    /// # Errors
    /// One is not there, others than its owner may have access, or it is not a token.
    pub fn load(dir: &Path) -> Result<Self, SecretError> {
        let [data, admin] = FILES.map(|file| Secret::load(&dir.join(file)));
        Ok(Self { data: data?, admin: admin? })
    }

    /// As [`Self::load`]; draws what is not there yet.
    ///
    /// # Errors
    /// As [`Self::load`]; or it cannot be written.
    pub fn load_or_create(dir: &Path) -> Result<Self, SecretError> {
        let [data, admin] = FILES.map(|file| Secret::load_or_create(&dir.join(file)));
        Ok(Self { data: data?, admin: admin? })
    }

    /// Takes the same time for every text of one length.
    fn role_of(&self, token: &str) -> Option<Role> {
        let (is_admin, is_data) = (self.admin.is_text(token), self.data.is_text(token));
        if is_admin { Some(Role::Admin) } else { is_data.then_some(Role::Data) }
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
            Some(_) => {
                let words = format!("{method} {path} needs the admin token; this is the one for data");
                Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", words))
            }
            None => Err(ApiError::unauthorized("The token is not one of this cluster")),
        }
    }
}

/// What a request needs; `None` for what a probe may ask. What is not known here needs the most.
pub(super) fn needed(method: &Method, path: &str) -> Option<Role> {
    match path {
        "/heartbeat" | "/healthz" | "/readyz" | "/openapi.json" => None,
        "/home" | "/rep" | "/status" | "/explain" | "/events" | "/metrics" | "/read" | "/write" | "/update" | "/del" | "/copy"
        | "/get_wal" | "/get_wal_count" => Some(Role::Data),
        "/primary_elect" | "/primary-elect" if *method == Method::GET => Some(Role::Data),
        _ if path.starts_with("/read/") => Some(Role::Data),
        _ => Some(Role::Admin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::response::IntoResponse;

    const DATA: [u8; 32] = [0xda; 32];
    const ADMIN: [u8; 32] = [0xad; 32];

    fn answer(method: Method, path: &str, shown: Option<&str>) -> Option<StatusCode> {
        let access = Access::Tokens(Arc::new(Tokens { data: Secret::new(DATA), admin: Secret::new(ADMIN) }));
        let headers = shown.map(|shown| (header::AUTHORIZATION, shown.parse().expect("plain text"))).into_iter().collect();
        access.check(&method, path, &headers).err().map(|error| error.into_response().status())
    }

    #[test]
    fn each_token_opens_what_is_its_own() {
        let [data, admin] = ["da", "ad"].map(|digits| format!("Bearer {}", digits.repeat(32)));
        for (method, path, data_alone) in [
            (Method::POST, "/read", true),
            (Method::GET, "/read/Server0", true),
            (Method::POST, "/write", true),
            (Method::GET, "/status", true),
            (Method::GET, "/primary_elect", true),
            (Method::POST, "/primary_elect", false),
            (Method::POST, "/init", false),
            (Method::DELETE, "/rm", false),
            (Method::POST, "/not-yet-known", false),
        ] {
            assert_eq!(answer(method.clone(), path, None), Some(StatusCode::UNAUTHORIZED), "{path}");
            assert_eq!(answer(method.clone(), path, Some(&admin)), None, "{path}");
            let refused = (!data_alone).then_some(StatusCode::FORBIDDEN);
            assert_eq!(answer(method, path, Some(&data)), refused, "{path}");
        }
        assert_eq!(answer(Method::GET, "/heartbeat", None), None);
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
