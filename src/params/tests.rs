use super::*;
use crate::spec::{InitialSpectrum, LowRankStart};

const DTYPE: DType = DType::F64;

fn low_rank(spectrum: InitialSpectrum, standard_deviation: f64) -> Initial {
    let start = LowRankStart::Factors;
    Initial::LowRank { rows: 6, columns: 5, rank: 2, standard_deviation, spectrum, start }
}

/// The weight that a form of parameter `q` begins with.
fn first(initial: Initial) -> Weight {
    let role = Role::Matrix(Place { layer: 0, target: Target::Q });
    let declared = Declared::trained("q".into(), role, initial);
    declared.draw(3, DTYPE, &Device::Cpu).expect("drawn").weight
}

/// A Gaussian spectrum is that of the dense matrix drawn from the same seed, cut: the distance
/// between them is what the smaller singular values hold (Eckart and Young). A flat one has the
/// norm that is asked for, and zeros are zeros in both.
#[test]
fn a_gaussian_spectrum_is_cut_from_the_dense_draw() {
    let dense = Initial::Normal { rows: 6, columns: 5, standard_deviation: 0.5 };
    let Weight::Dense(dense) = first(dense) else { panic!("a dense weight") };
    let point = |spectrum, deviation| match first(low_rank(spectrum, deviation)) {
        Weight::LowRank(point) => point,
        Weight::Dense(_) | Weight::Uncut(_) => panic!("a low-rank weight"),
    };
    let norm = |w: &Tensor| -> f64 {
        let sum = w.sqr().and_then(|w| w.sum_all()).and_then(|sum| sum.to_scalar::<f64>());
        sum.expect("a norm").sqrt()
    };
    let sigma = LowRank::from_dense(&dense, 5).and_then(|point| point.singular_values());
    let sigma = sigma.expect("an SVD");
    let cut = point(InitialSpectrum::Gaussian, 0.5).to_dense().expect("a matrix");
    let tail = sigma[2..].iter().map(|s| s * s).sum::<f64>().sqrt();
    assert!((norm(&(&dense - &cut).expect("same shapes")) - tail).abs() < 1e-12);
    assert!((norm(&cut) - sigma[0].hypot(sigma[1])).abs() < 1e-12);
    let flat = point(InitialSpectrum::Flat, 0.5);
    assert!((norm(&flat.to_dense().expect("a matrix")) - 0.5 * 30f64.sqrt()).abs() < 1e-12);
    for spectrum in [InitialSpectrum::Flat, InitialSpectrum::Gaussian] {
        assert_eq!(norm(&point(spectrum, 0.0).to_dense().expect("a matrix")), 0.0);
    }
}

fn declared() -> Vec<Declared> {
    let place = Place { layer: 0, target: Target::Q };
    let low_rank = low_rank(InitialSpectrum::Flat, 0.5);
    let factor =
        |factor| Initial::Factor { factor, rows: 6, columns: 5, rank: 2, standard_deviation: 0.5 };
    vec![
        Declared::trained(
            "table".into(),
            Role::Embedding,
            Initial::Normal { rows: 7, columns: 3, standard_deviation: 0.1 },
        ),
        Declared::trained("norm".into(), Role::Norm, Initial::Constant { size: 3, value: 1.0 }),
        Declared::trained("q".into(), Role::Matrix(place), low_rank),
        Declared::trained("k.b".into(), Role::Factor(place, Factor::B), factor(Factor::B)),
        Declared::trained("k.a".into(), Role::Factor(place, Factor::A), factor(Factor::A)),
    ]
}

fn load(tensors: Vec<(String, Tensor)>) -> anyhow::Result<ParamStore> {
    let reader = TensorReader::new("model.safetensors", tensors);
    ParamStore::load(&declared(), reader, DTYPE, &Device::Cpu)
}

fn drawn() -> Vec<(String, Tensor)> {
    ParamStore::initialize(&declared(), 3, DTYPE, &Device::Cpu).expect("drawn").named_tensors()
}

fn numbers(tensors: &[(String, Tensor)]) -> Vec<(String, Vec<usize>, Vec<f64>)> {
    let read = |(name, tensor): &(String, Tensor)| {
        let values = tensor.flatten_all().and_then(|t| t.to_vec1()).expect("numbers");
        (name.clone(), tensor.dims().to_vec(), values)
    };
    tensors.iter().map(read).collect()
}

#[test]
fn what_is_loaded_is_what_was_saved_whatever_the_order() {
    let saved = drawn();
    let shuffled = saved.iter().rev().cloned().collect();
    let loaded = load(shuffled).expect("loads").named_tensors();
    assert_eq!(numbers(&loaded), numbers(&saved));
}

#[test]
fn a_low_rank_weight_has_the_rank_it_was_saved_with() {
    let mut saved = drawn();
    let point = LowRank::random(
        6,
        5,
        4,
        1.0,
        &mut crate::rng::stream(1, "another rank", &[]),
        DTYPE,
        &Device::Cpu,
    )
    .expect("point");
    for (leaf, tensor) in [(".u", point.u), (".s", point.s), (".v", point.v)] {
        let place = saved.iter_mut().find(|(name, _)| *name == format!("q{leaf}"));
        place.expect("a leaf of q").1 = tensor;
    }
    assert_eq!(load(saved).expect("loads").mean_rank(), Some(4.0));
}

#[test]
fn a_missing_a_misshaped_and_a_leftover_tensor_are_errors() {
    let without = |name: &str| {
        let mut tensors = drawn();
        tensors.retain(|(other, _)| other != name);
        tensors
    };
    let with = |name: &str, shape: &[usize]| {
        let mut tensors = without(name);
        tensors.push((name.into(), Tensor::zeros(shape, DTYPE, &Device::Cpu).expect("zeros")));
        format!("{:#}", load(tensors).expect_err("refused"))
    };
    let refused: [(String, &[&str]); 6] = [
        (
            format!("{:#}", load(without("q.s")).expect_err("refused")),
            &["model.safetensors: no tensor `q.s` is left to read"],
        ),
        (with("table", &[3, 7]), &["model.safetensors: tensor `table`", "[3, 7]", "[7, 3]"]),
        (with("k.b", &[6, 3]), &["model.safetensors: tensor `k.b`", "[6, 3]", "[6, 2]"]),
        (with("q.u", &[8, 2]), &["model.safetensors: `q` is 8 x 5, but the network needs 6 x 5"]),
        (with("q.u", &[6, 3]), &["model.safetensors: `q`", "[6, 3]", "[2, 2]", "[5, 2]"]),
        (with("extra", &[1]), &["model.safetensors: 1 tensors have no place", "`extra`"]),
    ];
    for (message, parts) in refused {
        assert!(parts.iter().all(|part| message.contains(part)), "{message}\n{parts:?}");
    }
}

/// A weight that is dense until it is cut is the product of what its factors would be, or the dense
/// draw itself; and is read in the form that it was saved in.
#[test]
fn a_dense_start_is_the_same_matrix_in_one_piece() {
    let draw = |spectrum, start| {
        let initial = Initial::LowRank {
            rows: 6,
            columns: 5,
            rank: 5,
            standard_deviation: 0.5,
            spectrum,
            start,
        };
        let declared = Declared::trained("w".into(), Role::Bias, initial);
        let parameter = declared.draw(3, DType::F64, &Device::Cpu).expect("a parameter");
        let dense = match &parameter.weight {
            Weight::LowRank(point) => point.to_dense().expect("a product"),
            Weight::Uncut(tensor) => tensor.clone(),
            Weight::Dense(_) => panic!("a low-rank weight"),
        };
        (declared, parameter, dense)
    };
    for spectrum in [InitialSpectrum::Flat, InitialSpectrum::Gaussian] {
        let (declared, uncut, dense) = draw(spectrum, LowRankStart::Dense);
        let (_, factors, product) = draw(spectrum, LowRankStart::Factors);
        let difference = (dense - product).and_then(|x| x.abs()?.max_all()).expect("equal shapes");
        assert!(difference.to_scalar::<f64>().expect("a number") < 1e-12);
        assert_eq!((uncut.weight.rank(), factors.weight.rank()), (Some(5), Some(5)));
        assert_eq!((uncut.element_count(), factors.element_count()), (30, 80));
        for saved in [uncut, factors] {
            let leaves = saved.weight.leaves().into_iter();
            let leaves = leaves.map(|(leaf, tensor)| (format!("w{leaf}"), tensor.clone()));
            let mut reader = TensorReader::new("a file", leaves.collect());
            let read = declared.read(&mut reader, DType::F64, &Device::Cpu).expect("a weight");
            reader.finish().expect("all of it");
            assert_eq!(read.weight.leaves().len(), saved.weight.leaves().len());
        }
    }
}
