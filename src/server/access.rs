//! Access: the token, and which web pages. Without a token the server listens on loopback only, and then only
//! pages of its own may use it: another page could otherwise generate images in the browser of whoever opens it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::App;
use super::reply::Problem;

/// What the page may load: its own files and images.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
     connect-src 'self'; media-src 'self' blob:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
/// What needs no token: whether the server lives, and the page, which asks for it.
const OPEN: [&str; 3] = ["/healthz", "/readyz", "/"];

/// Refuses requests without access, and adds the CORS headers to each reply.
pub(super) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let mut response = match refusal(&app, &request) {
        Some(problem) => {
            let mut response = problem.into_response();
            if response.status() == StatusCode::UNAUTHORIZED {
                // One line each: browsers read no list.
                for way in ["Bearer", "Basic realm=\"calotype\""] {
                    let way = HeaderValue::from_static(way);
                    response.headers_mut().append(header::WWW_AUTHENTICATE, way);
                }
            }
            response
        }
        // A browser that asks whether it may ask; that it is listed was checked.
        None if request.method() == Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
        None => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Some(origin) = origin.filter(|origin| is_listed(&app, origin)) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        let allowed = HeaderValue::from_static("authorization, content-type");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
    }
    response
}

fn refusal(app: &App, request: &Request) -> Option<Problem> {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if app.config.token.is_none() && !is_local(host, &app.config.address.ip().to_string()) {
        // A foreign name that leads to this machine.
        let message = format!("host: expected localhost or this server's address, got {host:?}");
        return Some(Problem::new(StatusCode::FORBIDDEN, message));
    }
    if let Some(origin) = headers.get(header::ORIGIN) {
        let own = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
        if own != Some(host) && !is_listed(app, origin) {
            let message = format!("origin: expected this server's own pages, got {origin:?}");
            return Some(Problem::new(StatusCode::FORBIDDEN, message));
        }
        if request.method() == Method::OPTIONS {
            return None;
        }
    }
    let path = request.uri().path();
    let is_open = OPEN.contains(&path) || path.starts_with("/kiosk/");
    let token = app.config.token.as_deref().filter(|_| !is_open)?;
    (!has_token(headers, token)).then(|| {
        Problem::new(StatusCode::UNAUTHORIZED, "expected this server's token, as Bearer or as Basic password")
    })
}

/// Whether a `Host` header names this machine, with whatever port.
fn is_local(host: &str, address: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    ["localhost", "127.0.0.1", "::1", address].contains(&name)
}

fn is_listed(app: &App, origin: &HeaderValue) -> bool {
    app.config.origins.iter().any(|listed| listed.as_bytes() == origin.as_bytes())
}

fn has_token(headers: &HeaderMap, token: &str) -> bool {
    let Some(given) = headers.get(header::AUTHORIZATION).and_then(|given| given.to_str().ok()) else {
        return false;
    };
    let (scheme, value) = given.split_once(' ').unwrap_or_default();
    let value = value.trim();
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" => is_same(value.as_bytes(), token.as_bytes()),
        "basic" => STANDARD.decode(value).is_ok_and(|pair| {
            let password = pair.iter().position(|&byte| byte == b':').map(|at| &pair[at + 1..]);
            password.is_some_and(|password| is_same(password, token.as_bytes()))
        }),
        _ => false,
    }
}

/// Compares in a time that does not depend on where they differ.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |found, (a, b)| found | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_this_machine_or_another() {
        for host in ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "192.168.1.5:80"] {
            assert!(is_local(host, "192.168.1.5"), "{host}");
        }
        for host in ["", "example.com", "localhost.example.com:80", "127.0.0.1.example.com", "[::2]:1"] {
            assert!(!is_local(host, "127.0.0.1"), "{host}");
        }
    }

    #[test]
    fn tokens_are_bearers_or_passwords() {
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        let basic = |pair: &str| with(&format!("Basic {}", STANDARD.encode(pair)));
        for headers in [with("Bearer secret"), with("bearer  secret"), basic("me:secret"), basic(":secret")] {
            assert!(has_token(&headers, "secret"), "{headers:?}");
        }
        for headers in [
            HeaderMap::new(),
            with("secret"),
            with("Bearer secre"),
            with("Bearer secrets"),
            with("Bearer"),
            basic("secret"),
            basic("secret:"),
            with("Basic ###"),
        ] {
            assert!(!has_token(&headers, "secret"), "{headers:?}");
        }
    }
}
