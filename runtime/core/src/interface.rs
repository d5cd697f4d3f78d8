//! What a program says about itself, in no engine's words: methods, their arguments and what they return.
//!
//! An engine translates its own schema into this; [`crate::plan`] and [`crate::binding`] read it. Invariant: nothing here was run or
//! measured.

use std::fmt;

use torchmodel_crds::{Failure, FailurePhase, FailureReason};

/// A program's methods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Every method that may be served.
    pub methods: Vec<MethodInterface>,
}

/// A method and what it does to memory that is not its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodInterface {
    /// Its name.
    pub name: String,
    /// Its arguments, in order.
    pub arguments: Vec<ArgumentInterface>,
    /// What it returns.
    pub returns: ValueType,
    /// Whether it may write to the program's own state: the answer then depends on earlier calls.
    pub is_stateful: bool,
    /// Whether it may write to its arguments' memory.
    pub mutates_inputs: bool,
    /// Whether anything but its arguments' shapes may decide how long it runs.
    pub duration_depends_on_values: bool,
}

/// One argument of a method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgumentInterface {
    /// Its name.
    pub name: String,
    /// Its type.
    pub value_type: ValueType,
    /// Whether it may be left out.
    pub has_default: bool,
}

/// A type, as far as the inference protocol can carry it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// A tensor.
    Tensor,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// A truth value.
    Bool,
    /// A text.
    Str,
    /// Nothing.
    None,
    /// A list of one type.
    List(Box<ValueType>),
    /// One type, or nothing.
    Optional(Box<ValueType>),
    /// A table.
    Dict {
        /// Type of the keys.
        key: Box<ValueType>,
        /// Type of the values.
        value: Box<ValueType>,
    },
    /// Several types in a fixed order.
    Tuple {
        /// Types of the items.
        items: Vec<ValueType>,
        /// Field names; empty for a plain tuple.
        names: Vec<String>,
    },
    /// Anything else, as the engine prints it.
    Other(String),
}

impl Interface {
    /// The same, with the method of that name known to keep state.
    #[must_use]
    pub fn with_state(mut self, name: &str) -> Self {
        for method in self.methods.iter_mut().filter(|method| method.name == name) {
            method.is_stateful = true;
            // What earlier calls left behind may be of any size.
            method.duration_depends_on_values = true;
        }
        self
    }

    /// The method of that name. Errors: there is none; says which there are.
    pub fn method(&self, name: &str) -> Result<&MethodInterface, Failure> {
        self.methods.iter().find(|method| method.name == name).ok_or_else(|| {
            let known: Vec<_> = self.methods.iter().map(|method| method.name.as_str()).collect();
            let message = format!("the model has no method '{name}'; it has {}", known.join(", "));
            Failure::new(FailurePhase::Load, FailureReason::SignatureShapeMismatch, message)
        })
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.write_str("Tensor"),
            Self::Int => f.write_str("int"),
            Self::Float => f.write_str("float"),
            Self::Bool => f.write_str("bool"),
            Self::Str => f.write_str("str"),
            Self::None => f.write_str("None"),
            Self::List(item) => write!(f, "List[{item}]"),
            Self::Optional(item) => write!(f, "Optional[{item}]"),
            Self::Dict { key, value } => write!(f, "Dict[{key}, {value}]"),
            Self::Tuple { items, .. } => {
                f.write_str("Tuple[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Self::Other(name) => f.write_str(name),
        }
    }
}
