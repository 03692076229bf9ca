//! `model.weights.adapter:` of a spec: low-rank fine-tuning of a model that is given.

use super::architecture::Target;
use super::findings::Findings;
use super::model_plan::ModelPlan;
use super::model_spec::WeightsSpec;
use super::plan::WeightForm;
use super::run_spec::RunSpec;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

/// Adapters beside the frozen matrices of `init`; everything else is frozen, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdapterWeightsSpec {
    /// Rank of each adapter at the start of training.
    pub rank: usize,
    /// What is added to the frozen matrices.
    #[serde(default, skip_serializing_if = "AdapterForm::is_default")]
    pub form: AdapterForm,
    /// `form: lora`: the product B A is scaled by alpha / rank; default: the rank, a scale of 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<usize>,
    /// The matrices that are adapted, `[q, v]`, or with ranks of their own, `{q: 8, v: 16}`;
    /// default: all matrices of the blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<AdapterTargets>,
    /// Rank of an adapter beside the head (`lm_head`, which may be the table of tokens and then
    /// stays that of the tokens as it is); default: none. It keeps its rank where `rank:` changes
    /// others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<usize>,
    /// Ranks of single blocks' adapters: a list with an entry for each block from the first on,
    /// `[{up: 8}, {q: 0, up: 0}]`; 0 for a matrix that is not adapted there. Other ranks are for
    /// those that stay as they start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::model_spec::per_layer_schema")]
    pub layers: Vec<BTreeMap<Target, usize>>,
}

/// What is added to a frozen matrix W₀: m × n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterForm {
    /// W = W₀ + U S Vᵀ on the manifold of rank-r matrices, trained by DLRA; S = 0 at the start.
    #[default]
    LowRank,
    /// W = W₀ + (alpha / r) B A with free factors (LoRA, Hu et al. 2021); B = 0 at the start.
    Lora,
}

impl AdapterForm {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The matrices that are adapted, some with ranks of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterTargets(pub BTreeMap<Target, Option<usize>>);

impl AdapterWeightsSpec {
    /// Form of one matrix.
    pub(super) fn form_of(&self, target: Target) -> WeightForm {
        let own = match &self.targets {
            None => Some(None),
            Some(AdapterTargets(targets)) => targets.get(&target).copied(),
        };
        own.map_or(WeightForm::Dense, |own| self.of_rank(own.unwrap_or(self.rank)))
    }

    /// Form of the adapter beside the head.
    pub(super) fn head_form(&self) -> Option<WeightForm> {
        self.head.map(|rank| self.of_rank(rank))
    }

    fn of_rank(&self, rank: usize) -> WeightForm {
        let alpha = match self.form {
            AdapterForm::LowRank => None,
            AdapterForm::Lora => Some(self.alpha.unwrap_or(rank)),
        };
        WeightForm::Adapter { rank, form: self.form, alpha }
    }

    /// The spec of a model's adapters, the first one's settings for all, and of the ranks of single
    /// blocks.
    pub(super) fn of(model: &ModelPlan) -> Option<Self> {
        let adapters: BTreeMap<Target, (usize, AdapterForm, Option<usize>)> = model
            .weights
            .iter()
            .chain(model.head_adapter.as_ref().map(|form| (&Target::HEAD, form)))
            .filter_map(|(target, form)| match form {
                WeightForm::Adapter { rank, form, alpha } => {
                    Some((*target, (*rank, *form, *alpha)))
                }
                _ => None,
            })
            .collect();
        let (rank, form, alpha) = *adapters.values().next()?;
        // One α for all, or each its rank.
        let follows = adapters.values().all(|(rank, _, alpha)| *alpha == Some(*rank));
        let alpha = alpha.filter(|_| !follows);
        let head = adapters.get(&Target::HEAD).map(|adapter| adapter.0);
        let in_blocks = || adapters.iter().filter(|(target, _)| **target != Target::HEAD);
        let is_usual = in_blocks().count() == model.weights.len()
            && in_blocks().all(|(_, adapter)| adapter.0 == rank);
        let ranks = in_blocks().map(|(target, adapter)| (*target, Some(adapter.0)));
        let targets = (!is_usual).then(|| AdapterTargets(ranks.collect()));
        Some(Self { rank, form, alpha, targets, head, layers: model.layers.clone() })
    }
}

/// What only adapters need: a model to adapt, matrices of it, and a scale.
pub(super) fn check_adapter(found: &mut Findings, spec: &RunSpec) {
    let WeightsSpec::Adapter(adapter) = &spec.model.weights else { return };
    found.require(spec.init.is_some(), "model.weights.adapter", || {
        "adapts a model that is there; name it, `init: {hf: DIR}` or `init: {run: RUN}`".into()
    });
    found.require(adapter.alpha != Some(0), "model.weights.adapter.alpha", || {
        "is 0; set at least 1, such as the rank or twice that, or leave it out".into()
    });
    let is_empty = adapter.targets.as_ref().is_some_and(|targets| targets.0.is_empty());
    found.require(!is_empty || adapter.head.is_some(), "model.weights.adapter.targets", || {
        "names no matrix; name some, leave it out to adapt all, or adapt the head, `head: RANK`"
            .into()
    });
    // A vocabulary that is smaller than that is known with the tokenizer.
    if let Some(rank) = adapter.head {
        let width = spec.model.n_embd;
        found.require((1..=width).contains(&rank), "model.weights.adapter.head", || {
            format!("rank {rank} is not possible for a head {width} wide; choose 1 to {width}")
        });
    }
}

impl Serialize for AdapterTargets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.values().all(Option::is_none) {
            return serializer.collect_seq(self.0.keys());
        }
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (target, rank) in &self.0 {
            map.serialize_entry(target, rank)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for AdapterTargets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListOrRanks;
        impl<'de> Visitor<'de> for ListOrRanks {
            type Value = AdapterTargets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("matrices, `[q, v]`, or matrices with their ranks, `{q: 8, v: 16}`")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AdapterTargets, A::Error> {
                let mut targets = BTreeMap::new();
                while let Some(target) = list.next_element::<Target>()? {
                    if targets.insert(target, None).is_some() {
                        return Err(A::Error::custom(format!("names `{}` twice", target.name())));
                    }
                }
                Ok(AdapterTargets(targets))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AdapterTargets, A::Error> {
                let mut targets = BTreeMap::new();
                while let Some((target, rank)) = map.next_entry::<Target, Option<usize>>()? {
                    targets.insert(target, rank);
                }
                Ok(AdapterTargets(targets))
            }
        }
        deserializer.deserialize_any(ListOrRanks)
    }
}

impl JsonSchema for AdapterTargets {
    fn schema_name() -> Cow<'static, str> {
        "AdapterTargets".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let names: Vec<&str> = Target::of_blocks().map(Target::name).collect();
        let mut ranks = super::model_spec::per_target_schema::<usize>(generator);
        ranks.insert("description".into(), "Ranks by matrix.".into());
        json_schema!({
            "description": "Adapted matrices, with or without ranks of their own.",
            "anyOf": [{ "type": "array", "items": { "type": "string", "enum": names } }, ranks.to_value()]
        })
    }
}
