//! Counts as people write them: `500`, `60_000`, `1e6`, `10M`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A whole number of steps, tokens or bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Count(pub u64);
