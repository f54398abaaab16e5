//! The scoring service as a Rust team would write it: axum, deadpool-postgres, candle on the CPU. No tiers, no state.

mod database;
mod model;

use std::env::var;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header::AUTHORIZATION};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::database::Database;
use crate::model::CardModel;

const ID_LENGTH_MAX: usize = 128;
const AMOUNT_MAX: i64 = 10_000_000_000; // minor units
const TS_MIN: i64 = 100_000_000_000; // ms; below it a time is in seconds
const TS_MAX: i64 = 1 << 62;
const BATCH_ROWS_MAX: usize = 1024;
const BODY_BYTES_MAX: usize = 16 << 20;

#[derive(Deserialize)]
struct Tx {
    event_id: String,
    card_id: String,
    merchant_id: String,
    amount: i64,
    ts: i64,
}

#[derive(Serialize)]
struct Decision {
    event_id: String,
    score: f32,
    outcome: &'static str,
}

pub enum Failure {
    Unauthorized,
    Invalid(String),
    Unknown(String),
    Internal(String),
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Internal(error.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Failure::Unauthorized => (StatusCode::UNAUTHORIZED, "the API key is missing or wrong".into()),
            Failure::Invalid(detail) => (StatusCode::UNPROCESSABLE_ENTITY, detail),
            Failure::Unknown(id) => (StatusCode::NOT_FOUND, format!("no card or merchant {id}")),
            Failure::Internal(detail) => (StatusCode::INTERNAL_SERVER_ERROR, detail),
        };
        (status, Json(json!({ "detail": detail }))).into_response()
    }
}

struct App {
    key: String,
    database: Database,
    model: CardModel,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let workers = var("STACK_WORKERS")?.parse()?;
    tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?.block_on(serve())
}

async fn serve() -> Result<(), Box<dyn std::error::Error>> {
    let app = Arc::new(App {
        key: format!("Bearer {}", var("STACK_KEY")?),
        database: Database::open(&var("STACK_DATABASE_URL")?, var("STACK_POOL")?.parse()?).await?,
        model: CardModel::open(&var("STACK_WEIGHTS")?)?,
    });
    let routes = Router::new()
        .route("/score", post(score))
        .route("/score/batch", post(score_batch))
        .layer(middleware::from_fn_with_state(app.clone(), check_key))
        .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app);
    let listener = TcpListener::bind((var("STACK_HOST")?, var("STACK_PORT")?.parse()?)).await?;
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, routes)
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}

async fn check_key(State(app): State<Arc<App>>, request: Request, next: Next) -> Result<Response, Failure> {
    match request.headers().get(AUTHORIZATION) {
        Some(given) if same(given.as_bytes(), app.key.as_bytes()) => Ok(next.run(request).await),
        _ => Err(Failure::Unauthorized),
    }
}

/// Compares in a time that does not tell how much of it is right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (x, y)| different | (x ^ y)) == 0
}

async fn score(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<Decision>, Failure> {
    let tx: Tx = parse(&body)?;
    tx.validate()?;
    let vector = app.database.vector(&tx.card_id, &tx.merchant_id).await?;
    let risks = app.model.infer(vector, 1)?;
    Ok(Json(decide(tx, risks[0])))
}

async fn score_batch(State(app): State<Arc<App>>, body: Bytes) -> Result<Json<Vec<Decision>>, Failure> {
    let txs: Vec<Tx> = parse(&body)?;
    let rows = txs.len();
    if !(1..=BATCH_ROWS_MAX).contains(&rows) {
        return Err(Failure::Invalid(format!("{rows} rows: expected 1 to {BATCH_ROWS_MAX}")));
    }
    txs.iter().try_for_each(Tx::validate)?;
    let cards: Vec<&str> = txs.iter().map(|tx| tx.card_id.as_str()).collect();
    let merchants: Vec<&str> = txs.iter().map(|tx| tx.merchant_id.as_str()).collect();
    let vectors = app.database.vectors(&cards, &merchants).await?;
    let risks = app.model.infer(vectors, rows)?;
    Ok(Json(txs.into_iter().zip(risks).map(|(tx, risk)| decide(tx, risk)).collect()))
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| Failure::Invalid(error.to_string()))
}

impl Tx {
    fn validate(&self) -> Result<(), Failure> {
        for id in [&self.event_id, &self.card_id, &self.merchant_id] {
            let length = id.chars().count();
            if !(1..=ID_LENGTH_MAX).contains(&length) {
                return Err(Failure::Invalid(format!("an id has {length} characters: expected 1 to {ID_LENGTH_MAX}")));
            }
        }
        if !(0..=AMOUNT_MAX).contains(&self.amount) {
            return Err(Failure::Invalid(format!("amount {}: expected 0 to {AMOUNT_MAX}", self.amount)));
        }
        if !(TS_MIN..=TS_MAX).contains(&self.ts) {
            return Err(Failure::Invalid(format!("ts {}: expected milliseconds", self.ts)));
        }
        Ok(())
    }
}

fn decide(tx: Tx, risk: f32) -> Decision {
    let outcome = match risk {
        risk if risk < 0.5 => "approve",
        risk if risk < 0.9 => "review",
        _ => "decline",
    };
    Decision { event_id: tx.event_id, score: risk, outcome }
}
