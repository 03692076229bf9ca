//! What is trained beside a frozen matrix W₀: m × n, of a block or of the head.

use super::layers::Declarations;
use crate::params::{Factor, Initial, ParamId, Place, Role};
use crate::spec::{AdapterForm, WeightForm};

/// The parameters of an adapter.
#[derive(Clone, Copy, Debug)]
pub(super) enum Adapter {
    /// U S Vᵀ, a point on the manifold.
    LowRank(ParamId),
    /// scale · B A.
    Lora {
        /// B: m × r.
        b: ParamId,
        /// A: r × n.
        a: ParamId,
        /// α/r.
        scale: f64,
    },
}

impl Adapter {
    /// The adapter of this site, which adds nothing at first; none where the form is no adapter's.
    pub fn declare(
        declarations: &mut Declarations,
        site: &str,
        place: Place,
        (rows, columns): (usize, usize),
        form: WeightForm,
    ) -> Option<Self> {
        let WeightForm::Adapter { rank, form, alpha } = form else { return None };
        let name = adapter_name(site);
        Some(match form {
            AdapterForm::LowRank => {
                let initial = Initial::Adapter { rows, columns, rank };
                Self::LowRank(declarations.add(name, Role::Matrix(place), initial))
            }
            AdapterForm::Lora => {
                let mut factor = |factor: Factor, initial| {
                    let name = format!("{name}.{}", factor.name());
                    declarations.add(name, Role::Factor(place, factor), initial)
                };
                let b = factor(Factor::B, Initial::LoraB { rows, rank });
                let a = factor(Factor::A, Initial::LoraA { rank, columns });
                Self::Lora { b, a, scale: lora_scale(rank, alpha) }
            }
        })
    }
}

/// Name of a site's adapter in checkpoints, without the names of its parts.
pub(super) fn adapter_name(site: &str) -> String {
    format!("{site}.adapter")
}

/// α/r, the scale of B A; 1 where there is no α.
pub fn lora_scale(rank: usize, alpha: Option<usize>) -> f64 {
    alpha.map_or(1.0, |alpha| alpha as f64 / rank as f64)
}
