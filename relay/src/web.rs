//! What the web door answers: every route in one screen.

#[cfg(test)]
pub(crate) mod visitor;

use std::net::{IpAddr, SocketAddr};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use satellite_shared::enrolment::{CHALLENGE_PATH, ENROL_PATH, RECOVER_PATH};
use satellite_shared::limits::ENROLMENT_BYTES_MAX;

use crate::enrolment::{Enrolment, Refusal, parse};

/// Where the relay's authority is to be had, PEM.
pub const CA_PATH: &str = "/v1/ca";
/// Where a load balancer or a person sees that the relay serves.
pub const HEALTH_PATH: &str = "/healthz";

/// Who is at the other end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

impl Peer {
    fn address(self) -> IpAddr {
        self.0.ip().to_canonical()
    }
}

/// The routes.
pub fn router(enrolment: Enrolment) -> Router {
    Router::new()
        .route(ENROL_PATH, post(enrol))
        .route(CHALLENGE_PATH, post(challenge))
        .route(RECOVER_PATH, post(recover))
        .route(CA_PATH, get(authorities))
        .route(HEALTH_PATH, get(health))
        .fallback(async || Refusal::NotFound)
        .method_not_allowed_fallback(async || Refusal::Method)
        .layer(DefaultBodyLimit::max(ENROLMENT_BYTES_MAX))
        .layer(map_response(guarded))
        .with_state(enrolment)
}

type Body = Result<Bytes, BytesRejection>;

async fn enrol(State(enrolment): State<Enrolment>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let answer = async {
        enrolment.admit(peer.address())?;
        enrolment.enrol(&parse(&read(body)?)?, peer.address()).await
    };
    answer.await.map(Json).into_response()
}

async fn challenge(State(enrolment): State<Enrolment>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let answer = || {
        enrolment.admit(peer.address())?;
        Ok::<_, Refusal>(enrolment.challenge(parse(&read(body)?)?))
    };
    answer().map(Json).into_response()
}

async fn recover(State(enrolment): State<Enrolment>, Extension(peer): Extension<Peer>, body: Body) -> Response {
    let answer = async {
        enrolment.admit(peer.address())?;
        enrolment.recover(&parse(&read(body)?)?).await
    };
    answer.await.map(Json).into_response()
}

async fn authorities(State(enrolment): State<Enrolment>) -> Response {
    ([(header::CONTENT_TYPE, "application/x-pem-file")], enrolment.ca_bundle().to_owned()).into_response()
}

async fn health(State(enrolment): State<Enrolment>) -> Response {
    match enrolment.is_healthy().await {
        true => "ok\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the registry does not answer\n").into_response(),
    }
}

fn read(body: Body) -> Result<Bytes, Refusal> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::TooLarge,
        _ => Refusal::Bad("the request's body did not arrive whole".into()),
    })
}

/// Nothing here is for caches, frames or guesses.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    response
}
