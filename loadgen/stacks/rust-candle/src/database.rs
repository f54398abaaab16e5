//! Features of cards and merchants from Postgres, two queries a request.

use std::collections::HashMap;

use deadpool_postgres::{Manager, Object, Pool};
use tokio_postgres::NoTls;

use crate::Failure;
use crate::model::N_FEATURES;

const CARD: &str = "SELECT features FROM stack_cards WHERE card_id = $1";
const MERCHANT: &str = "SELECT features FROM stack_merchants WHERE merchant_id = $1";
const CARDS: &str = "SELECT card_id, features FROM stack_cards WHERE card_id = ANY($1)";
const MERCHANTS: &str = "SELECT merchant_id, features FROM stack_merchants WHERE merchant_id = ANY($1)";

pub struct Database {
    pool: Pool,
}

impl Database {
    pub async fn open(url: &str, size: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let pool = Pool::builder(Manager::new(url.parse()?, NoTls)).max_size(size).build()?;
        pool.get().await?; // a server that cannot be reached is seen now
        Ok(Self { pool })
    }

    /// The feature vector of a card and a merchant.
    pub async fn vector(&self, card: &str, merchant: &str) -> Result<Vec<f32>, Failure> {
        let client = self.pool.get().await?;
        let mut vector = one(&client, CARD, card).await?;
        vector.extend(one(&client, MERCHANT, merchant).await?);
        Ok(vector)
    }

    /// The feature vectors of all rows, one after the other.
    pub async fn vectors(&self, cards: &[&str], merchants: &[&str]) -> Result<Vec<f32>, Failure> {
        let client = self.pool.get().await?;
        let of_cards = many(&client, CARDS, cards).await?;
        let of_merchants = many(&client, MERCHANTS, merchants).await?;
        let mut vectors = Vec::with_capacity(cards.len() * N_FEATURES);
        for (card, merchant) in cards.iter().zip(merchants) {
            for (found, id) in [(&of_cards, card), (&of_merchants, merchant)] {
                vectors.extend(found.get(*id).ok_or_else(|| Failure::Unknown(id.to_string()))?);
            }
        }
        Ok(vectors)
    }
}

async fn one(client: &Object, query: &str, id: &str) -> Result<Vec<f32>, Failure> {
    let statement = client.prepare_cached(query).await?;
    let row = client.query_opt(&statement, &[&id]).await?;
    Ok(row.ok_or_else(|| Failure::Unknown(id.to_string()))?.get(0))
}

async fn many(client: &Object, query: &str, ids: &[&str]) -> Result<HashMap<String, Vec<f32>>, Failure> {
    let statement = client.prepare_cached(query).await?;
    let rows = client.query(&statement, &[&ids]).await?;
    Ok(rows.into_iter().map(|row| (row.get(0), row.get(1))).collect())
}
