//! The operations of training on NVIDIA GPUs: what each kernel takes and gives. Tensors without
//! gaps, in f32 or bf16; sums and everything between are in f32.

use crate::kernels::gpu::{Argument, Gpu, Grid, Module, kernel_name};
use Argument::{Count, Long, Maybe, Of, Single};
use candle_core::{DType, Result, Tensor, bail};

/// Rows that one thread sums; fixed, so that a sum depends on its sizes alone.
const ROWS_PER_PART: usize = 64;

/// Threads for each row of logits.
const THREADS_PER_ROW: u32 = 512;

/// Refuses a tensor of another type or number of numbers than the kernel reads.
fn expect(kernel: &str, x: &Tensor, dtype: DType, count: usize) -> Result<()> {
    if x.dtype() != dtype || x.elem_count() != count {
        bail!("{kernel}: {:?} of {:?} in place of {count} of {dtype:?}", x.dims(), x.dtype())
    }
    Ok(())
}

/// Query rows of an attention against the keys that they may see.
pub(super) struct CausalRows<'a> {
    /// The first query.
    pub first: usize,
    /// Heads of a sequence.
    pub heads: usize,
    /// Tokens of a sequence, T.
    pub length: usize,
    /// What the scores are multiplied by.
    pub scale: f64,
    /// The first token that each query's document has, (B, 1, T, 1) f32, where rows have several.
    pub starts: Option<&'a Tensor>,
}

impl CausalRows<'_> {
    /// Launches a kernel over all rows of scores (B H, rows, keys), with these tensors before the
    /// others.
    fn launch(&self, gpu: Gpu, name: &str, inputs: &[&Tensor], outputs: &[&Tensor]) -> Result<()> {
        let (tasks, rows, keys) = inputs[0].dims3()?;
        let places = [inputs, outputs].concat();
        let kernel = kernel_name(name, inputs[0], keys, &places);
        for x in &places {
            expect(&kernel, x, inputs[0].dtype(), tasks * rows * keys)?;
        }
        if let Some(starts) = self.starts {
            expect(&kernel, starts, DType::F32, tasks / self.heads * self.length)?;
        }
        let mut arguments: Vec<Argument> = inputs.iter().map(|x| Of(x)).collect();
        arguments.push(Maybe(self.starts));
        arguments.extend(outputs.iter().map(|x| Of(x)));
        arguments.extend([tasks, rows, keys, self.first, self.heads, self.length].map(Count));
        arguments.push(Single(self.scale));
        gpu.launch(Module::Operations, &kernel, Grid::of_warps(tasks * rows), &arguments)
    }

    /// softmax of the scaled scores, 0 where a query does not see a key.
    pub fn softmax(&self, gpu: Gpu, scores: &Tensor) -> Result<Tensor> {
        let p = gpu.output(scores.shape(), scores.dtype())?;
        self.launch(gpu, "causal_softmax", &[scores], &[&p])?;
        Ok(p)
    }

    /// The same, and the gradient by the scores from that by the probabilities.
    pub fn backward(&self, gpu: Gpu, scores: &Tensor, dp: &Tensor) -> Result<(Tensor, Tensor)> {
        let output = || gpu.output(scores.shape(), scores.dtype());
        let (p, ds) = (output()?, output()?);
        self.launch(gpu, "causal_softmax_backward", &[scores, dp], &[&p, &ds])?;
        Ok((p, ds))
    }
}

/// (outer, a, b, inner) as (outer, b, a, inner).
pub(super) fn swap_axes(gpu: Gpu, x: &Tensor) -> Result<Tensor> {
    let (outer, a, b, inner) = x.dims4()?;
    let y = gpu.output((outer, b, a, inner), x.dtype())?;
    let by_four = inner.is_multiple_of(4) && x.layout().start_offset().is_multiple_of(4);
    let unit = if by_four { 4 } else { 1 };
    let kernel = format!("swap_axes_{}", unit * x.dtype().size_in_bytes());
    let count = x.elem_count() / unit;
    let arguments = [Of(x), Of(&y), Long(count), Count(a), Count(b), Count(inner / unit)];
    gpu.launch(Module::Operations, &kernel, Grid::of_threads(count), &arguments)?;
    Ok(y)
}

/// Loss of each row of logits (rows, V) against its target (rows) u32, in f32, and, with a factor,
/// factor (softmax − onehot) in the logits' type.
pub(super) fn cross_entropy(
    gpu: Gpu,
    logits: &Tensor,
    targets: &Tensor,
    factor: Option<f64>,
) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, width) = logits.dims2()?;
    let losses = gpu.output(rows, DType::F32)?;
    let gradient = factor.map(|_| gpu.output(logits.shape(), logits.dtype())).transpose()?;
    let kernel = kernel_name("cross_entropy", logits, width, &[logits]);
    expect(&kernel, targets, DType::U32, rows)?;
    let arguments = [
        Of(logits),
        Of(targets),
        Of(&losses),
        Maybe(gradient.as_ref()),
        Count(width),
        Single(factor.unwrap_or(0.0)),
    ];
    let grid = Grid::of_blocks(rows, THREADS_PER_ROW);
    gpu.launch(Module::Operations, &kernel, grid, &arguments)?;
    Ok((losses, gradient))
}

/// A norm of rows x (…, C) in f32, with the mean taken off or not.
pub(super) struct Norm<'a> {
    /// Input.
    pub x: &'a Tensor,
    /// Weight, C.
    pub weight: &'a Tensor,
    /// Added to the variance.
    pub epsilon: f64,
    /// Whether the mean is taken off.
    pub centered: bool,
}

impl Norm<'_> {
    /// Refuses what the kernels do not read.
    fn check(&self, kernel: &str) -> Result<()> {
        let (rows, width) = self.sizes();
        expect(kernel, self.weight, DType::F32, width)?;
        expect(kernel, self.x, DType::F32, rows * width)
    }

    fn sizes(&self) -> (usize, usize) {
        let width = self.weight.elem_count();
        (self.x.elem_count() / width.max(1), width)
    }

    fn settings(&self) -> [Argument<'_>; 4] {
        let (rows, width) = self.sizes();
        [Count(rows), Count(width), Single(self.epsilon), Count(self.centered.into())]
    }

    /// The normed rows, in this type.
    pub fn forward(&self, gpu: Gpu, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
        let (rows, width) = self.sizes();
        let y = gpu.output(self.x.shape(), dtype)?;
        let mut places = vec![self.x, self.weight];
        places.extend(bias);
        let kernel = kernel_name("norm", &y, width, &places);
        self.check(&kernel)?;
        bias.map_or(Ok(()), |bias| expect(&kernel, bias, DType::F32, width))?;
        let arguments = [&[Of(self.x), Of(self.weight), Maybe(bias), Of(&y)], &self.settings()[..]];
        gpu.launch(Module::Operations, &kernel, Grid::of_warps(rows), &arguments.concat())?;
        Ok(y)
    }

    /// dx, dw and, if wanted, db.
    pub fn backward(
        &self,
        gpu: Gpu,
        delta: &Tensor,
        with_bias: bool,
    ) -> Result<(Tensor, Tensor, Option<Tensor>)> {
        let (rows, width) = self.sizes();
        let dx = gpu.output(self.x.shape(), DType::F32)?;
        let of_rows = gpu.output((rows, 2), DType::F32)?;
        let places = [self.x, self.weight, delta];
        let kernel = kernel_name("norm_backward", delta, width, &places);
        self.check(&kernel)?;
        expect(&kernel, delta, delta.dtype(), rows * width)?;
        let tensors = [Of(self.x), Of(self.weight), Of(delta), Of(&dx), Of(&of_rows)];
        let arguments = [&tensors[..], &self.settings()[..]].concat();
        gpu.launch(Module::Operations, &kernel, Grid::of_warps(rows), &arguments)?;
        let parts = rows.div_ceil(ROWS_PER_PART);
        let part = || gpu.output((parts, width), DType::F32);
        let (dw, db) = (part()?, if with_bias { Some(part()?) } else { None });
        let arguments = [
            Of(self.x),
            Of(delta),
            Of(&of_rows),
            Of(&dw),
            Maybe(db.as_ref()),
            Count(rows),
            Count(width),
            Count(ROWS_PER_PART),
        ];
        let kernel = format!("norm_parameters_{}", delta.dtype().as_str());
        gpu.launch(Module::Operations, &kernel, Grid::of_columns(width, parts), &arguments)?;
        let db = db.map(|db| column_sums(gpu, &db)).transpose()?;
        Ok((dx, column_sums(gpu, &dw)?, db))
    }
}

/// Σ over the rows of x (rows, C), in f32.
pub(super) fn column_sums(gpu: Gpu, x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let parts = rows.div_ceil(ROWS_PER_PART);
    let sums = gpu.output((parts, width), DType::F32)?;
    let kernel = format!("column_sums_{}", x.dtype().as_str());
    let arguments = [Of(x), Of(&sums), Count(rows), Count(width), Count(ROWS_PER_PART)];
    gpu.launch(Module::Operations, &kernel, Grid::of_columns(width, parts), &arguments)?;
    if parts == 1 { sums.reshape(width) } else { column_sums(gpu, &sums) }
}

/// A kernel over the numbers of tensors of one shape and type, which gives N more of them.
pub(super) fn elementwise<const N: usize>(
    gpu: Gpu,
    name: &str,
    inputs: &[&Tensor],
) -> Result<[Tensor; N]> {
    let mut outputs = Vec::with_capacity(N);
    for _ in 0..N {
        outputs.push(gpu.output(inputs[0].shape(), inputs[0].dtype())?);
    }
    let count = inputs[0].elem_count();
    let mut arguments: Vec<Argument> = inputs.iter().map(|x| Of(x)).collect();
    arguments.extend(outputs.iter().map(Of));
    arguments.push(Long(count));
    let kernel = kernel_name(name, inputs[0], count, inputs);
    for x in inputs {
        expect(&kernel, x, inputs[0].dtype(), count)?;
    }
    gpu.launch(Module::Operations, &kernel, per_number(&kernel, count), &arguments)?;
    outputs.try_into().map_err(|_| candle_core::Error::Msg(format!("{name}: {N} outputs")))
}

/// A thread for each number, or for four of them where the kernel takes as many.
fn per_number(kernel: &str, count: usize) -> Grid {
    Grid::of_threads(if kernel.ends_with("_4") { count / 4 } else { count })
}

/// y + b on every row of y, for b of f32.
pub(super) fn add_bias(gpu: Gpu, y: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (count, width) = (y.elem_count(), bias.elem_count());
    let out = gpu.output(y.shape(), y.dtype())?;
    let kernel = kernel_name("add_bias", y, width, &[y, bias]);
    expect(&kernel, bias, DType::F32, width)?;
    let arguments = [Of(y), Of(bias), Of(&out), Long(count), Count(width)];
    gpu.launch(Module::Operations, &kernel, per_number(&kernel, count), &arguments)?;
    Ok(out)
}

/// a + b for a of f32, in f32.
pub(super) fn add(gpu: Gpu, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let count = a.elem_count();
    let out = gpu.output(a.shape(), DType::F32)?;
    let kernel = kernel_name("add_f32", b, count, &[a, b]);
    expect(&kernel, a, DType::F32, count)?;
    expect(&kernel, b, b.dtype(), count)?;
    let arguments = [Of(a), Of(b), Of(&out), Long(count)];
    gpu.launch(Module::Operations, &kernel, per_number(&kernel, count), &arguments)?;
    Ok(out)
}

/// Every head of x (B, T, H 2 half) turned by cosines and sines (positions, half) of f32.
pub(super) fn rotary(gpu: Gpu, x: &Tensor, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let ((_, _, width), (positions, half)) = (x.dims3()?, cosines.dims2()?);
    let y = gpu.output(x.shape(), x.dtype())?;
    let pairs = x.elem_count() / 2;
    let kernel = format!("rotary_{}", x.dtype().as_str());
    for table in [cosines, sines] {
        expect(&kernel, table, DType::F32, positions * half)?;
    }
    let sizes = [positions, width / (2 * half), half].map(Count);
    let tensors = [Of(x), Of(cosines), Of(sines), Of(&y), Long(pairs)];
    let arguments = [&tensors[..], &sizes[..]].concat();
    gpu.launch(Module::Operations, &kernel, Grid::of_threads(pairs), &arguments)?;
    Ok(y)
}

/// The gradient by a table (V, C) of f32 of its rows with these ids (N) u32, from that by the rows
/// (N, C).
pub(super) fn embedding_gradient(
    gpu: Gpu,
    ids: &Tensor,
    delta: &Tensor,
    table: &Tensor,
) -> Result<Tensor> {
    let ((rows, width), vocabulary) = (delta.dims2()?, table.dim(0)?);
    let kernel = "embedding_gradient_f32";
    expect(kernel, ids, DType::U32, rows)?;
    expect(kernel, delta, DType::F32, rows * width)?;
    expect(kernel, table, DType::F32, vocabulary * width)?;
    let gradient = table.zeros_like()?;
    let arguments =
        [Of(ids), Of(delta), Of(&gradient), Count(rows), Count(width), Count(vocabulary)];
    let columns = Grid::of_columns(width, 1);
    // The rows are the first dimension, which may have more blocks.
    let grid = Grid { blocks: (rows, columns.blocks.0), ..columns };
    gpu.launch(Module::Operations, kernel, grid, &arguments)?;
    Ok(gradient)
}
