//! Parameters before they have numbers: names, shapes, and how their first numbers are drawn.

use super::{Factor, Parameter, Role, TensorReader, Weight};
use crate::lowrank::LowRank;
use crate::rng;
use crate::spec::{InitialSpectrum, LowRankStart};
use anyhow::{Context, ensure};
use candle_core::{DType, Device, Result, Tensor};
use rand::Rng;

/// A parameter that a network has, before it has numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Declared {
    /// Name in checkpoints.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its shape, and how its first numbers are drawn.
    pub initial: Initial,
    /// Whether training changes it.
    pub trained: bool,
}

/// Shape and first numbers of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// A vector of equal numbers.
    Constant {
        /// How many.
        size: usize,
        /// Each of them.
        value: f64,
    },
    /// A dense matrix of independent normal numbers.
    Normal {
        /// Rows m.
        rows: usize,
        /// Columns n.
        columns: usize,
        /// Standard deviation σ of an entry.
        standard_deviation: f64,
    },
    /// W = U S Vᵀ, flat: with random orthonormal bases and ‖W‖_F = σ√(mn); or Gaussian: the best
    /// approximation of rank r of what [`Initial::Normal`] draws.
    LowRank {
        /// Rows m.
        rows: usize,
        /// Columns n.
        columns: usize,
        /// Rank r.
        rank: usize,
        /// σ: the standard deviation of a dense matrix of the same norm.
        standard_deviation: f64,
        /// Singular values.
        spectrum: InitialSpectrum,
        /// Whether it is the product, a dense matrix, until it is cut.
        start: LowRankStart,
    },
    /// A free factor of the same W.
    Factor {
        /// Which.
        factor: Factor,
        /// Rows m of W.
        rows: usize,
        /// Columns n of W.
        columns: usize,
        /// Inner dimension r.
        rank: usize,
        /// σ as for [`Initial::LowRank`].
        standard_deviation: f64,
    },
    /// An adapter U S Vᵀ with random orthonormal bases and S = 0.
    Adapter {
        /// Rows m.
        rows: usize,
        /// Columns n.
        columns: usize,
        /// Rank r.
        rank: usize,
    },
    /// B: m × r of an adapter B A, zeros.
    LoraB {
        /// Rows m.
        rows: usize,
        /// Inner dimension r.
        rank: usize,
    },
    /// A: r × n of an adapter B A, uniform between ±1/√n (He et al. 2015 with a slope of √5, as in
    /// PEFT).
    LoraA {
        /// Inner dimension r.
        rank: usize,
        /// Columns n.
        columns: usize,
    },
}

impl Declared {
    /// A parameter that training changes.
    pub fn trained(name: String, role: Role, initial: Initial) -> Self {
        Self { name, role, initial, trained: true }
    }

    /// The parameter with its first numbers, a pure function of the seed and the name.
    ///
    /// # Errors
    /// If a rank exceeds its matrix, or a tensor cannot be made.
    pub fn draw(&self, seed: u64, dtype: DType, device: &Device) -> Result<Parameter> {
        Ok(self.with(self.initial.draw(seed, &self.name, dtype, device)?))
    }

    /// The parameter with numbers saved under its name; a low-rank weight has the rank it was saved
    /// with.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn read(
        &self,
        reader: &mut TensorReader,
        dtype: DType,
        device: &Device,
    ) -> anyhow::Result<Parameter> {
        let placed = |tensor: Tensor| tensor.to_dtype(dtype)?.to_device(device);
        let weight = match self.initial {
            Initial::LowRank { rows, columns, start: LowRankStart::Dense, .. }
                if reader.contains(&self.name) =>
            {
                Weight::Uncut(placed(reader.take_shaped(&self.name, &[rows, columns])?)?)
            }
            Initial::LowRank { rows, columns, .. } | Initial::Adapter { rows, columns, .. } => {
                let mut part = |leaf: &str| -> anyhow::Result<Tensor> {
                    Ok(placed(reader.take(&format!("{}{leaf}", self.name))?)?)
                };
                let point = LowRank::from_parts(part(".u")?, part(".s")?, part(".v")?)
                    .with_context(|| format!("{}: `{}`", reader.source(), self.name))?;
                ensure!(
                    (point.rows(), point.columns()) == (rows, columns),
                    "{}: `{}` is {} x {}, but the network needs {rows} x {columns}; \
                     was the spec changed?",
                    reader.source(),
                    self.name,
                    point.rows(),
                    point.columns()
                );
                Weight::LowRank(point)
            }
            _ => Weight::Dense(placed(reader.take_shaped(&self.name, &self.initial.shape())?)?),
        };
        Ok(self.with(weight))
    }

    /// The most numbers that the parameter can have, at its full rank.
    pub fn most_numbers(&self) -> u64 {
        match self.initial {
            Initial::LowRank { rows, columns, .. } | Initial::Adapter { rows, columns, .. } => {
                let [rows, columns] = [rows, columns].map(|size| size as u64);
                let rank = rows.min(columns);
                rank.saturating_mul(rows.saturating_add(columns).saturating_add(rank))
            }
            _ => {
                let shape = self.initial.shape();
                shape.iter().fold(1, |product: u64, size| product.saturating_mul(*size as u64))
            }
        }
    }

    fn with(&self, weight: Weight) -> Parameter {
        Parameter { name: self.name.clone(), role: self.role, weight, trained: self.trained }
    }
}

impl Initial {
    /// Whether it is an adapter, or a factor of one.
    pub fn is_adapter(self) -> bool {
        use Initial::{Adapter, LoraA, LoraB};
        matches!(self, Adapter { .. } | LoraB { .. } | LoraA { .. })
    }

    /// Whether it is low-rank and dense until it is cut.
    pub fn is_uncut(self) -> bool {
        matches!(self, Initial::LowRank { start: LowRankStart::Dense, .. })
    }

    /// The rank of a point on the manifold; none for other parameters.
    pub fn rank(self) -> Option<usize> {
        match self {
            Initial::LowRank { rank, .. } | Initial::Adapter { rank, .. } => Some(rank),
            _ => None,
        }
    }

    /// Numbers of the dense matrix in this parameter's place; the factors of one matrix count once,
    /// and an adapter takes no place of its own.
    pub fn dense_count(self) -> usize {
        match self {
            Initial::Constant { size, .. } => size,
            Initial::Normal { rows, columns, .. }
            | Initial::LowRank { rows, columns, .. }
            | Initial::Factor { factor: Factor::B | Factor::U, rows, columns, .. } => {
                rows * columns
            }
            Initial::Factor { factor: Factor::A | Factor::S | Factor::VTransposed, .. }
            | Initial::Adapter { .. }
            | Initial::LoraB { .. }
            | Initial::LoraA { .. } => 0,
        }
    }

    /// Shape of the tensor, or of the whole matrix where it is kept as U, S and V.
    pub fn shape(self) -> Vec<usize> {
        match self {
            Initial::Constant { size, .. } => vec![size],
            Initial::Normal { rows, columns, .. }
            | Initial::LowRank { rows, columns, .. }
            | Initial::Adapter { rows, columns, .. } => vec![rows, columns],
            Initial::LoraB { rows, rank } => vec![rows, rank],
            Initial::LoraA { rank, columns } => vec![rank, columns],
            Initial::Factor { factor, rows, columns, rank, .. } => match factor {
                Factor::B | Factor::U => vec![rows, rank],
                Factor::S => vec![rank, rank],
                Factor::A | Factor::VTransposed => vec![rank, columns],
            },
        }
    }

    fn draw(self, seed: u64, name: &str, dtype: DType, device: &Device) -> Result<Weight> {
        let stream = |name: &str| rng::stream(seed, &format!("init {name}"), &[]);
        let normal = |name: &str, rows: usize, columns: usize, standard_deviation: f64| {
            let mut numbers = rng::normals(&mut stream(name), rows * columns);
            numbers.iter_mut().for_each(|x| *x *= standard_deviation);
            Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)
        };
        let orthonormal =
            |name: &str, rows: usize, columns: usize, rank: usize, standard_deviation: f64| {
                let norm = standard_deviation * ((rows * columns) as f64).sqrt();
                LowRank::random(rows, columns, rank, norm, &mut stream(name), dtype, device)
            };
        Ok(match self {
            Initial::Constant { size, value } => {
                Weight::Dense((Tensor::ones(size, dtype, device)? * value)?)
            }
            Initial::Normal { rows, columns, standard_deviation } => Weight::Dense(
                normal(name, rows, columns, standard_deviation)?
                    .to_dtype(dtype)?
                    .to_device(device)?,
            ),
            Initial::LowRank { rows, columns, rank, standard_deviation, spectrum, start } => {
                let placed = |part: Tensor| part.to_dtype(dtype)?.to_device(device);
                let flat = || orthonormal(name, rows, columns, rank, standard_deviation);
                // A matrix of zeros has no singular vectors of its own.
                let is_drawn = spectrum == InitialSpectrum::Gaussian && standard_deviation > 0.0;
                let drawn = || normal(name, rows, columns, standard_deviation);
                match start {
                    LowRankStart::Factors if is_drawn => {
                        let LowRank { u, s, v } = LowRank::from_dense(&drawn()?, rank)?;
                        let point = LowRank::from_parts(placed(u)?, placed(s)?, placed(v)?)?;
                        Weight::LowRank(point)
                    }
                    LowRankStart::Factors => Weight::LowRank(flat()?),
                    LowRankStart::Dense if is_drawn => Weight::Uncut(placed(drawn()?)?),
                    LowRankStart::Dense => Weight::Uncut(flat()?.to_dense()?),
                }
            }
            Initial::Adapter { rows, columns, rank } => {
                Weight::LowRank(orthonormal(name, rows, columns, rank, 0.0)?)
            }
            Initial::LoraB { rows, rank } => {
                Weight::Dense(Tensor::zeros((rows, rank), dtype, device)?)
            }
            Initial::LoraA { rank, columns } => {
                let bound = 1.0 / (columns as f64).sqrt();
                let uniform = rand_distr::Uniform::new(-bound, bound)
                    .map_err(|error| candle_core::Error::Msg(format!("`{name}`: {error}")))?;
                let numbers: Vec<f64> =
                    stream(name).sample_iter(uniform).take(rank * columns).collect();
                Weight::Dense(
                    Tensor::from_vec(numbers, (rank, columns), &Device::Cpu)?
                        .to_dtype(dtype)?
                        .to_device(device)?,
                )
            }
            // The factors of one W = U S Vᵀ, B = U √S and A = √S Vᵀ balanced; all draw the same W,
            // from the name without the factor's.
            Initial::Factor { factor, rows, columns, rank, standard_deviation } => {
                let matrix = name.rsplit_once('.').map_or(name, |(matrix, _)| matrix);
                let point = orthonormal(matrix, rows, columns, rank, standard_deviation)?;
                Weight::Dense(factor.of(&point)?)
            }
        })
    }
}
