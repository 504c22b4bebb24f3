//! A model's parameters on a device.

use espalier_kernels::{Activation, Device, NormKind};
use espalier_models::architecture::{self, Architecture};
use espalier_models::{ModelShape, Part, TensorKey, Units};

use crate::error::{Result, RuntimeError};
use crate::load::upload;
use crate::pages::Pages;

/// A model's parameters on a device: mapped from an artifact, or its own and trainable.
pub struct Network<D: Device> {
    /// Where it is.
    pub device: D,
    /// What all layers share.
    pub architecture: Architecture,
    /// What each layer has.
    pub shape: ModelShape,
    pub(crate) input: InputTable<D>,
    pub(crate) positions: Option<D::Weight>,
    /// The angle per position of each rotated pair, one buffer an attention span; empty where positions are not rotary.
    pub(crate) frequencies: Vec<D::Buffer>,
    pub(crate) layers: Vec<Option<Layer<D>>>,
    pub(crate) final_norm: Norm<D>,
    /// None where the token table is the output matrix too.
    pub(crate) head: Option<D::Weight>,
    pub(crate) head_bias: Option<D::Buffer>,
    pub(crate) pages: Pages,
}

/// What turns the input into the residual stream.
pub(crate) enum InputTable<D: Device> {
    /// `[vocabulary, d_model]`.
    Tokens(D::Weight),
    /// `[d_model, patch]` and bias.
    Patches(Linear<D>),
}

/// A matrix and its bias.
pub(crate) struct Linear<D: Device> {
    pub weight: D::Weight,
    pub bias: Option<D::Buffer>,
}

/// A norm's scale and shift, `[d_model]` each but for those of heads.
pub(crate) struct Norm<D: Device> {
    pub weight: D::Buffer,
    pub bias: Option<D::Buffer>,
}

/// The parameters of one layer.
pub(crate) struct Layer<D: Device> {
    pub units: Units,
    pub groups: D::Indices,
    pub attention_norm: Norm<D>,
    pub query: Linear<D>,
    pub key: Linear<D>,
    pub value: Linear<D>,
    /// Norms of query and key heads, `[head_dim]` each.
    pub qk_norms: Option<[Norm<D>; 2]>,
    pub output: Linear<D>,
    pub attention_post_norm: Option<Norm<D>>,
    /// None where the FFN reads through the attention norm.
    pub ffn_norm: Option<Norm<D>>,
    pub gate: Option<Linear<D>>,
    pub up: Linear<D>,
    pub down: Linear<D>,
    pub ffn_post_norm: Option<Norm<D>>,
}

/// Where a network's parameters come from, one tensor at a time.
pub(crate) trait ParameterSource<D: Device> {
    /// A matrix.
    fn matrix(&mut self, device: &D, key: TensorKey, rows: usize, columns: usize) -> Result<D::Weight>;
    /// A vector.
    fn vector(&mut self, device: &D, key: TensorKey, len: usize) -> Result<D::Buffer>;
}

impl<D: Device> Network<D> {
    pub(crate) fn assemble(
        device: D,
        architecture: Architecture,
        shape: ModelShape,
        source: &mut dyn ParameterSource<D>,
        pages: Pages,
    ) -> Result<Self> {
        let mut builder = Builder { device: &device, architecture: &architecture, source };
        let input = builder.input()?;
        let positions = builder.positions()?;
        let frequencies = rotary_frequencies(&device, &architecture)?;
        let mut layers = Vec::with_capacity(shape.layers.len());
        for (index, layer) in shape.layers.iter().enumerate() {
            layers.push(match layer.units() {
                Some(units) if units.span >= architecture.spans.len() => {
                    let spans = architecture.spans.len();
                    return Err(RuntimeError::Input(format!("layer {index} has attention span {}, of {spans} that there are", units.span)));
                }
                Some(units) => Some(builder.layer(index, units)?),
                None => None,
            });
        }
        let final_norm = builder.norm(None, Part::FinalNorm, Part::FinalNormBias)?;
        let (head, head_bias) = (builder.head()?, builder.head_bias()?);
        Ok(Self { input, positions, frequencies, layers, final_norm, head, head_bias, pages, device, architecture, shape })
    }

    /// The layers that are there, in running order.
    pub fn kept_layers(&self) -> Vec<usize> {
        self.shape.kept().map(|(index, _)| index).collect()
    }

    /// The units of one layer; an error where the layer is removed.
    pub fn units(&self, layer: usize) -> Result<&Units> {
        Ok(&self.layer(layer)?.units)
    }

    /// Checks that what was computed so far was computed with the artifact's numbers.
    pub(crate) fn check_pages(&self) -> Result<()> {
        self.pages.check()
    }

    /// Tells a streamed network that a layer's weights are not needed for now.
    ///
    /// # Errors
    /// [`RuntimeError::Model`] where a page of them could not be read.
    pub fn layer_done(&self, layer: usize) -> Result<()> {
        self.pages.layer_done(layer)
    }

    pub(crate) fn layer(&self, index: usize) -> Result<&Layer<D>> {
        self.layers
            .get(index)
            .and_then(Option::as_ref)
            .ok_or_else(|| RuntimeError::Input(format!("layer {index} is not there; the model has layers {:?}", self.kept_layers())))
    }

    /// The matrix of one key; an error where the model has none.
    pub fn weight(&self, key: TensorKey) -> Result<&D::Weight> {
        let missing = || RuntimeError::Input(format!("the model has no matrix {key}"));
        let Some(layer) = key.layer else {
            return match (key.part, &self.input) {
                (Part::TokenTable, InputTable::Tokens(table)) => Ok(table),
                (Part::Patch, InputTable::Patches(linear)) => Ok(&linear.weight),
                (Part::PositionTable, _) => self.positions.as_ref().ok_or_else(missing),
                (Part::Head, _) => self.head.as_ref().ok_or_else(missing),
                _ => Err(missing()),
            };
        };
        let layer = self.layer(layer as usize)?;
        match key.part {
            Part::Query => Ok(&layer.query.weight),
            Part::Key => Ok(&layer.key.weight),
            Part::Value => Ok(&layer.value.weight),
            Part::AttentionOutput => Ok(&layer.output.weight),
            Part::Gate => layer.gate.as_ref().map(|gate| &gate.weight).ok_or_else(missing),
            Part::Up => Ok(&layer.up.weight),
            Part::Down => Ok(&layer.down.weight),
            _ => Err(missing()),
        }
    }

    /// Every trainable tensor with its key, in storage order. Mapped matrices are left out.
    pub fn trainable(&mut self) -> Vec<(TensorKey, &mut D::Buffer)> {
        let device = &self.device;
        let mut out = Vec::new();
        match &mut self.input {
            InputTable::Tokens(table) => out.extend(device.owned_mut(table).map(|buffer| (TensorKey::global(Part::TokenTable), buffer))),
            InputTable::Patches(linear) => push_linear(&mut out, device, linear, None, Part::Patch, Part::PatchBias),
        }
        if let Some(table) = &mut self.positions {
            out.extend(device.owned_mut(table).map(|buffer| (TensorKey::global(Part::PositionTable), buffer)));
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let Some(layer) = layer else { continue };
            let at = Some(index as u32);
            push_norm(&mut out, &mut layer.attention_norm, at, Part::AttentionNorm, Part::AttentionNormBias);
            push_linear(&mut out, device, &mut layer.query, at, Part::Query, Part::QueryBias);
            push_linear(&mut out, device, &mut layer.key, at, Part::Key, Part::KeyBias);
            push_linear(&mut out, device, &mut layer.value, at, Part::Value, Part::ValueBias);
            if let Some([query, key]) = &mut layer.qk_norms {
                out.extend(
                    [(Part::QueryNorm, query), (Part::KeyNorm, key)].map(|(part, norm)| (TensorKey { layer: at, part }, &mut norm.weight)),
                );
            }
            push_linear(&mut out, device, &mut layer.output, at, Part::AttentionOutput, Part::AttentionOutputBias);
            if let Some(norm) = &mut layer.attention_post_norm {
                out.push((TensorKey { layer: at, part: Part::AttentionPostNorm }, &mut norm.weight));
            }
            if let Some(norm) = &mut layer.ffn_norm {
                push_norm(&mut out, norm, at, Part::FfnNorm, Part::FfnNormBias);
            }
            if let Some(gate) = &mut layer.gate {
                push_linear(&mut out, device, gate, at, Part::Gate, Part::GateBias);
            }
            push_linear(&mut out, device, &mut layer.up, at, Part::Up, Part::UpBias);
            push_linear(&mut out, device, &mut layer.down, at, Part::Down, Part::DownBias);
            if let Some(norm) = &mut layer.ffn_post_norm {
                out.push((TensorKey { layer: at, part: Part::FfnPostNorm }, &mut norm.weight));
            }
        }
        push_norm(&mut out, &mut self.final_norm, None, Part::FinalNorm, Part::FinalNormBias);
        if let Some(head) = &mut self.head {
            out.extend(device.owned_mut(head).map(|buffer| (TensorKey::global(Part::Head), buffer)));
        }
        out.extend(self.head_bias.as_mut().map(|bias| (TensorKey::global(Part::HeadBias), bias)));
        out
    }

    pub(crate) fn norm_kind(&self) -> NormKind {
        match self.architecture.norm.kind {
            architecture::NormKind::LayerNorm => NormKind::LayerNorm,
            architecture::NormKind::RmsNorm => NormKind::RmsNorm,
        }
    }

    pub(crate) fn activation(&self) -> Activation {
        match self.architecture.ffn.activation {
            architecture::Activation::GeluExact => Activation::GeluExact,
            architecture::Activation::GeluTanh => Activation::GeluTanh,
            architecture::Activation::Silu => Activation::Silu,
            architecture::Activation::Relu => Activation::Relu,
        }
    }
}

type Trainable<'a, D> = Vec<(TensorKey, &'a mut <D as Device>::Buffer)>;

fn push_linear<'a, D: Device>(
    out: &mut Trainable<'a, D>,
    device: &D,
    linear: &'a mut Linear<D>,
    layer: Option<u32>,
    part: Part,
    bias: Part,
) {
    if let Some(buffer) = device.owned_mut(&mut linear.weight) {
        out.push((TensorKey { layer, part }, buffer));
    }
    if let Some(buffer) = &mut linear.bias {
        out.push((TensorKey { layer, part: bias }, buffer));
    }
}

fn push_norm<'a, D: Device>(out: &mut Trainable<'a, D>, norm: &'a mut Norm<D>, layer: Option<u32>, part: Part, bias: Part) {
    out.push((TensorKey { layer, part }, &mut norm.weight));
    if let Some(buffer) = &mut norm.bias {
        out.push((TensorKey { layer, part: bias }, buffer));
    }
}

/// The angles of every attention span.
fn rotary_frequencies<D: Device>(device: &D, architecture: &Architecture) -> Result<Vec<D::Buffer>> {
    let architecture::Positions::Rotary { dims, .. } = architecture.positions else { return Ok(Vec::new()) };
    let missing = || RuntimeError::Input("an attention span has no rotary wavelengths".into());
    let of_span = |span: &architecture::AttentionSpan| {
        let frequencies = span.rotary.ok_or_else(missing)?.frequencies(dims);
        upload(device, &frequencies.into_iter().map(|frequency| frequency as f32).collect::<Vec<_>>())
    };
    architecture.spans.iter().map(of_span).collect()
}

/// Asks a source for every tensor of a model.
struct Builder<'a, D: Device> {
    device: &'a D,
    architecture: &'a Architecture,
    source: &'a mut dyn ParameterSource<D>,
}

impl<D: Device> Builder<'_, D> {
    fn linear(&mut self, layer: Option<u32>, part: Part, bias: Option<Part>, rows: usize, columns: usize) -> Result<Linear<D>> {
        let weight = self.source.matrix(self.device, TensorKey { layer, part }, rows, columns)?;
        // The bias of a unit-row matrix is as long as the residual stream, that of a row-dot matrix as long as its rows.
        let len = if part.is_unit_reduction() { columns } else { rows };
        let bias = match bias {
            Some(part) => Some(self.source.vector(self.device, TensorKey { layer, part }, len)?),
            None => None,
        };
        Ok(Linear { weight, bias })
    }

    fn norm(&mut self, layer: Option<u32>, part: Part, bias: Part) -> Result<Norm<D>> {
        let d = self.architecture.d_model;
        let weight = self.source.vector(self.device, TensorKey { layer, part }, d)?;
        let bias = match self.architecture.norm.kind {
            architecture::NormKind::LayerNorm => Some(self.source.vector(self.device, TensorKey { layer, part: bias }, d)?),
            architecture::NormKind::RmsNorm => None,
        };
        Ok(Norm { weight, bias })
    }

    /// An RMSNorm without bias over `len` numbers, where the model has it.
    fn scale(&mut self, present: bool, layer: Option<u32>, part: Part, len: usize) -> Result<Option<Norm<D>>> {
        if !present {
            return Ok(None);
        }
        Ok(Some(Norm { weight: self.source.vector(self.device, TensorKey { layer, part }, len)?, bias: None }))
    }

    fn input(&mut self) -> Result<InputTable<D>> {
        let d = self.architecture.d_model;
        match self.architecture.input {
            architecture::Input::Tokens { vocabulary } => {
                Ok(InputTable::Tokens(self.source.matrix(self.device, TensorKey::global(Part::TokenTable), vocabulary, d)?))
            }
            architecture::Input::Patches { patch, .. } => {
                Ok(InputTable::Patches(self.linear(None, Part::Patch, Some(Part::PatchBias), d, patch)?))
            }
        }
    }

    fn positions(&mut self) -> Result<Option<D::Weight>> {
        match self.architecture.positions {
            architecture::Positions::Learned { count, .. } => {
                Ok(Some(self.source.matrix(self.device, TensorKey::global(Part::PositionTable), count, self.architecture.d_model)?))
            }
            architecture::Positions::Rotary { .. } => Ok(None),
        }
    }

    fn layer(&mut self, index: usize, units: &Units) -> Result<Layer<D>> {
        let at = Some(index as u32);
        let d = self.architecture.d_model;
        let (attention, ffn) = (self.architecture.attention.clone(), self.architecture.ffn);
        let (query, kv) = (units.heads.len() * attention.head_dim, units.groups * attention.head_dim);
        let qkv_bias = |part| attention.qkv_bias.then_some(part);
        let ffn_bias = |part| ffn.bias.then_some(part);
        let post_norms = self.architecture.post_norms;
        let query_norm = self.scale(attention.qk_norm, at, Part::QueryNorm, attention.head_dim)?;
        let key_norm = self.scale(attention.qk_norm, at, Part::KeyNorm, attention.head_dim)?;
        Ok(Layer {
            groups: self.device.indices(&units.heads)?,
            attention_norm: self.norm(at, Part::AttentionNorm, Part::AttentionNormBias)?,
            query: self.linear(at, Part::Query, qkv_bias(Part::QueryBias), query, d)?,
            key: self.linear(at, Part::Key, qkv_bias(Part::KeyBias), kv, d)?,
            value: self.linear(at, Part::Value, qkv_bias(Part::ValueBias), kv, d)?,
            qk_norms: query_norm.zip(key_norm).map(<[Norm<D>; 2]>::from),
            output: self.linear(at, Part::AttentionOutput, attention.output_bias.then_some(Part::AttentionOutputBias), query, d)?,
            attention_post_norm: self.scale(post_norms, at, Part::AttentionPostNorm, d)?,
            ffn_norm: match self.architecture.has_ffn_norm() {
                true => Some(self.norm(at, Part::FfnNorm, Part::FfnNormBias)?),
                false => None,
            },
            gate: if ffn.gated { Some(self.linear(at, Part::Gate, ffn_bias(Part::GateBias), units.channels, d)?) } else { None },
            up: self.linear(at, Part::Up, ffn_bias(Part::UpBias), units.channels, d)?,
            down: self.linear(at, Part::Down, ffn_bias(Part::DownBias), units.channels, d)?,
            ffn_post_norm: self.scale(post_norms, at, Part::FfnPostNorm, d)?,
            units: units.clone(),
        })
    }

    /// The output matrix; none where the token table is it.
    fn head(&mut self) -> Result<Option<D::Weight>> {
        if matches!(self.architecture.output, architecture::Output::NextToken { tied: true, .. }) {
            return Ok(None);
        }
        let (width, d) = (self.architecture.output_width(), self.architecture.d_model);
        Ok(Some(self.source.matrix(self.device, TensorKey::global(Part::Head), width, d)?))
    }

    /// The bias of the output, where the model has one.
    fn head_bias(&mut self) -> Result<Option<D::Buffer>> {
        if matches!(self.architecture.output, architecture::Output::NextToken { bias: false, .. }) {
            return Ok(None);
        }
        Ok(Some(self.source.vector(self.device, TensorKey::global(Part::HeadBias), self.architecture.output_width())?))
    }
}
