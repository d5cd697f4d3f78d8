//! What a model takes and gives, and the checks of a request against it.
//!
//! Built by an engine from the TorchScript schema and the configuration; read by the service for every request and for
//! metadata. Invariant: what [`Signature::check`] lets pass has known names, declared datatypes and shapes, and no required
//! input missing, so that the engine need not look again.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::{
    inference::{InferError, InferRequest, NamedTensor},
    tensor::{DataType, DataTypeExt as _, Tensor},
};

/// One input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSignature {
    /// The argument's name.
    pub name: String,
    /// Its datatype; `None` takes any.
    pub datatype: Option<DataType>,
    /// Its whole shape, -1 for any size; `None` takes any.
    pub shape: Option<Vec<i64>>,
    /// Whether a request may leave it out.
    pub is_optional: bool,
    /// Whether its first dimension is the batch: true for tensors of a model with batching, never for numbers and texts.
    pub is_batched: bool,
    /// Whether its elements are taken in the order of their bytes from any shape: a list argument.
    pub is_flattened: bool,
}

/// One output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSignature {
    /// The name that clients see.
    pub name: String,
    /// Its datatype, once known.
    pub datatype: Option<DataType>,
    /// Its whole shape, once known; -1 for any size.
    pub shape: Option<Vec<i64>>,
}

/// What a model takes and gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// Inputs in the method's order.
    pub inputs: Vec<InputSignature>,
    /// Outputs in the method's order; those of a dict are known only once it ran.
    pub outputs: Vec<OutputSignature>,
    /// Whether `outputs` are all there are.
    pub are_outputs_known: bool,
    /// Whether an answer may depend on earlier requests.
    pub is_stateful: bool,
    /// Most rows of a request; `None` when the first dimension is not a batch.
    pub max_batch_size: Option<u64>,
}

/// A request's inputs in the model's order, with what the batcher needs to know.
#[derive(Debug)]
pub struct CheckedInputs {
    /// One slot for each input of the signature; `None` where the request left an optional one out.
    pub tensors: Vec<Option<Tensor>>,
    /// Rows, 1 when there is no batch dimension.
    pub rows: u64,
    /// Equal for requests that may share a batch; `None` when this one must run alone.
    pub key: Option<u64>,
}

impl Signature {
    /// Checks a request against the model and puts its inputs in order. The texts follow Triton's where clients look for them.
    pub fn check(&self, request: &mut InferRequest) -> Result<CheckedInputs, InferError> {
        let model = request.model.clone();
        let model = model.as_str();
        self.check_output_names(request)?;
        let inputs = std::mem::take(&mut request.inputs);
        self.check_input_names(&inputs, model)?;
        let mut tensors: Vec<Option<Tensor>> = self.inputs.iter().map(|_| None).collect();
        for NamedTensor { name, tensor } in inputs {
            let position = self.inputs.iter().position(|input| input.name == name);
            let Some((slot, input)) = position.and_then(|at| Some((tensors.get_mut(at)?, self.inputs.get(at)?))) else {
                return Err(invalid(format!("unexpected inference input '{name}' for model '{model}'")));
            };
            Self::check_tensor(input, &tensor, model)?;
            if slot.replace(tensor).is_some() {
                return Err(invalid(format!("input '{name}' is given more than once for model '{model}'")));
            }
        }
        let rows = self.rows(&tensors, model)?;
        let key = self.max_batch_size.filter(|maximum| *maximum > 1).and_then(|_| self.batch_key(&tensors));
        Ok(CheckedInputs { tensors, rows, key })
    }

    fn check_output_names(&self, request: &InferRequest) -> Result<(), InferError> {
        if self.are_outputs_known
            && let Some(name) =
                request.outputs.iter().find(|name| !self.outputs.iter().any(|output| output.name == **name))
        {
            let model = &request.model;
            let known: Vec<_> = self.outputs.iter().map(|output| output.name.as_str()).collect();
            return Err(invalid(format!(
                "unexpected inference output '{name}' for model '{model}': it gives {}",
                listed(&known)
            )));
        }
        Ok(())
    }

    fn check_input_names(&self, inputs: &[NamedTensor], model: &str) -> Result<(), InferError> {
        let has = |name: &str| inputs.iter().any(|input| input.name == name);
        if let Some(unknown) = inputs.iter().find(|input| !self.inputs.iter().any(|known| known.name == input.name)) {
            let known: Vec<_> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(invalid(format!(
                "unexpected inference input '{}' for model '{model}': it takes {}",
                unknown.name,
                listed(&known)
            )));
        }
        let missing: Vec<_> = self
            .inputs
            .iter()
            .filter(|input| !input.is_optional && !has(&input.name))
            .map(|input| input.name.as_str())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let given: Vec<_> = inputs.iter().map(|input| input.name.as_str()).collect();
        Err(invalid(format!(
            "expected {} inputs but got {} inputs for model '{model}'. Got input(s) [{}], but missing required input(s) [{}]. \
             Please provide all required input(s).",
            self.inputs.len(),
            inputs.len(),
            listed(&given),
            listed(&missing)
        )))
    }

    fn check_tensor(input: &InputSignature, tensor: &Tensor, model: &str) -> Result<(), InferError> {
        let name = &input.name;
        if let Some(expected) = input.datatype
            && expected != tensor.datatype()
        {
            return Err(invalid(format!(
                "inference input '{name}' data-type is '{}', but model '{model}' expects '{}'",
                tensor.datatype().as_str(),
                expected.as_str()
            )));
        }
        if let Some(expected) = &input.shape
            && !input.is_flattened
            && !fits(expected, tensor.shape())
        {
            return Err(invalid(format!(
                "unexpected shape for input '{name}' for model '{model}'. Expected {}, got {}.",
                shape_text(expected),
                shape_text(tensor.shape())
            )));
        }
        if input.is_batched && tensor.shape().is_empty() {
            return Err(invalid(format!(
                "input '{name}' for model '{model}' needs a first dimension, the batch: its shape is []"
            )));
        }
        Ok(())
    }

    fn rows(&self, tensors: &[Option<Tensor>], model: &str) -> Result<u64, InferError> {
        let Some(maximum) = self.max_batch_size else { return Ok(1) };
        let mut rows = None;
        for (input, tensor) in self.inputs.iter().zip(tensors) {
            let Some(tensor) = tensor.as_ref().filter(|_| input.is_batched) else { continue };
            let first = tensor.shape().first().copied().unwrap_or(1);
            if *rows.get_or_insert(first) != first {
                let name = &input.name;
                return Err(invalid(format!("input '{name}' batch size does not match other inputs for '{model}'")));
            }
        }
        let rows = rows.map_or(1, |rows| u64::try_from(rows).unwrap_or(0));
        if rows > maximum {
            return Err(invalid(format!(
                "inference request batch-size must be <= {maximum} for '{model}', got {rows}"
            )));
        }
        Ok(rows)
    }

    /// Requests may share a batch when the rows of each batched input have the same form and all other inputs the same value.
    /// `None` where that value is not in the host's memory, so that nobody can tell.
    fn batch_key(&self, tensors: &[Option<Tensor>]) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        for (input, tensor) in self.inputs.iter().zip(tensors) {
            let Some(tensor) = tensor else {
                0u8.hash(&mut hasher);
                continue;
            };
            tensor.datatype().hash(&mut hasher);
            if input.is_batched {
                tensor.shape().get(1..).hash(&mut hasher);
            } else {
                tensor.shape().hash(&mut hasher);
                tensor.content().host()?.hash(&mut hasher);
            }
        }
        Some(hasher.finish())
    }
}

fn invalid(message: String) -> InferError {
    InferError::InvalidRequest(message)
}

fn fits(expected: &[i64], actual: &[i64]) -> bool {
    expected.len() == actual.len() && expected.iter().zip(actual).all(|(want, have)| *want == -1 || want == have)
}

fn shape_text(shape: &[i64]) -> String {
    format!("[{}]", shape.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn input(name: &str) -> InputSignature {
        InputSignature {
            name: name.into(),
            datatype: Some(DataType::Uint8),
            shape: Some(vec![-1, 2]),
            is_optional: false,
            is_batched: true,
            is_flattened: false,
        }
    }

    fn signature() -> Signature {
        let scale = InputSignature { shape: Some(vec![1]), is_optional: true, is_batched: false, ..input("scale") };
        Signature {
            inputs: vec![input("a"), input("b"), scale],
            outputs: vec![OutputSignature { name: "sum".into(), datatype: None, shape: None }],
            are_outputs_known: true,
            is_stateful: false,
            max_batch_size: Some(4),
        }
    }

    fn tensor(name: &str, shape: &[i64], fill: u8) -> NamedTensor {
        let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let tensor = Tensor::new(DataType::Uint8, shape.to_vec(), Bytes::from(vec![fill; count])).unwrap();
        NamedTensor { name: name.into(), tensor }
    }

    fn check(inputs: Vec<NamedTensor>, outputs: &[&str]) -> Result<CheckedInputs, String> {
        let mut request = InferRequest {
            model: "m".parse().unwrap(),
            version: None,
            id: String::new(),
            inputs,
            outputs: outputs.iter().map(|name| (*name).to_owned()).collect(),
            parameters: crate::inference::Parameters::new(),
            deadline: None,
        };
        signature().check(&mut request).map_err(|error| error.to_string())
    }

    #[test]
    fn puts_inputs_in_the_models_order_and_counts_rows() {
        let checked = check(vec![tensor("b", &[3, 2], 1), tensor("a", &[3, 2], 2)], &["sum"]).unwrap();
        assert_eq!(checked.rows, 3);
        assert_eq!(checked.tensors[0].as_ref().unwrap().data()[0], 2);
        assert!(checked.tensors[2].is_none());
    }

    #[test]
    fn a_list_takes_its_elements_from_any_shape() {
        let list = InputSignature { shape: Some(vec![-1]), is_flattened: true, is_batched: false, ..input("a") };
        for shape in [&[][..], &[4], &[1, 4], &[2, 2, 1]] {
            assert_eq!(Signature::check_tensor(&list, &tensor("a", shape, 0).tensor, "m"), Ok(()));
            let strict = InputSignature { is_flattened: false, ..list.clone() };
            assert_eq!(Signature::check_tensor(&strict, &tensor("a", shape, 0).tensor, "m").is_ok(), shape.len() == 1);
        }
    }

    #[test]
    fn names_the_input_and_what_was_expected() {
        let a = || tensor("a", &[1, 2], 0);
        let cases = [
            (vec![a()], "missing required input(s) ['b']"),
            (
                vec![a(), tensor("z", &[1, 2], 0)],
                "unexpected inference input 'z' for model 'm': it takes 'a','b','scale'",
            ),
            (
                vec![a(), tensor("b", &[1, 3], 0)],
                "unexpected shape for input 'b' for model 'm'. Expected [-1,2], got [1,3].",
            ),
            (vec![a(), tensor("b", &[2, 2], 0)], "input 'b' batch size does not match other inputs for 'm'"),
            (vec![tensor("a", &[5, 2], 0), tensor("b", &[5, 2], 0)], "batch-size must be <= 4 for 'm', got 5"),
            (vec![a(), a(), tensor("b", &[1, 2], 0)], "input 'a' is given more than once"),
        ];
        for (inputs, expected) in cases {
            let message = check(inputs, &[]).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let wrong = Tensor::new(DataType::Int8, vec![1, 2], Bytes::from_static(&[0, 0])).unwrap();
        let message = check(vec![a(), NamedTensor { name: "b".into(), tensor: wrong }], &[]).unwrap_err();
        assert_eq!(message, "inference input 'b' data-type is 'INT8', but model 'm' expects 'UINT8'");
        let message = check(vec![a(), tensor("b", &[1, 2], 0)], &["q"]).unwrap_err();
        assert_eq!(message, "unexpected inference output 'q' for model 'm': it gives 'sum'");
    }

    #[test]
    fn requests_share_a_batch_when_only_rows_differ() {
        let key = |rows: i64, scale: Option<u8>| {
            let mut inputs = vec![tensor("a", &[rows, 2], 1), tensor("b", &[rows, 2], 1)];
            inputs.extend(scale.map(|fill| tensor("scale", &[1], fill)));
            check(inputs, &[]).unwrap().key
        };
        assert_eq!(key(1, None), key(3, None));
        assert_eq!(key(1, Some(5)), key(2, Some(5)));
        assert_ne!(key(1, Some(5)), key(1, Some(6)));
        assert_ne!(key(1, Some(5)), key(1, None));
    }
}
