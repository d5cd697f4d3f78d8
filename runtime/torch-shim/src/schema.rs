//! What is known about a module without running it: the JSON that `analysis.cpp` writes, as types.

use serde::Deserialize;

/// Static facts about a module.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ModuleFacts {
    /// Qualified name of the module's class.
    pub class_name: String,
    /// Its methods.
    pub methods: Vec<Method>,
    /// Its parameters, those of submodules included.
    pub parameters: Sizes,
    /// Its buffers, those of submodules included.
    pub buffers: Sizes,
    /// Element types of the parameters, in libtorch's words (`Float`, `Half`, …).
    pub parameter_types: Vec<String>,
    /// Devices that constants in the code name. One such as `cuda:0` in a traced model binds it to that device.
    pub constant_devices: Vec<String>,
}

impl ModuleFacts {
    /// The method of that name.
    #[must_use]
    pub fn method(&self, name: &str) -> Option<&Method> {
        self.methods.iter().find(|method| method.name == name)
    }
}

/// Number and size of a set of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Sizes {
    /// Elements.
    pub count: u64,
    /// Bytes.
    pub size_bytes: u64,
}

/// A method and what it does to memory that is not its own.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "five facts that do not hang together")]
pub struct Method {
    /// Its name.
    pub name: String,
    /// Its arguments without `self`.
    pub arguments: Vec<ArgumentSchema>,
    /// What it returns.
    pub returns: Type,
    /// Whether it may write to the module (its attributes, what lies in them, objects behind interfaces) or to constants of its
    /// code: the answer then depends on earlier calls. Random numbers are no state.
    pub is_stateful: bool,
    /// Whether it may write to constants of its code, which a copy of the module shares: see [`crate::Module::keep_constants`].
    pub writes_constants: bool,
    /// Whether it may write to its arguments' memory.
    pub mutates_inputs: bool,
    /// Whether it may draw random numbers, so that two equal calls differ.
    pub is_random: bool,
    /// Whether anything but its arguments' shapes may decide how long it runs: their values, or earlier calls. False only where that
    /// is certain.
    pub duration_depends_on_values: bool,
}

/// One argument of a method.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ArgumentSchema {
    /// Its name in the source.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub argument_type: Type,
    /// Whether it may be left out.
    pub has_default: bool,
}

/// A TorchScript type, as far as the inference protocol can carry it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind")]
pub enum Type {
    /// `Tensor`.
    Tensor,
    /// `int`.
    Int,
    /// `float`.
    Float,
    /// `bool`.
    Bool,
    /// `str`.
    Str,
    /// `None`.
    None,
    /// `List[item]`.
    List {
        /// Type of the items.
        item: Box<Type>,
    },
    /// `Optional[item]`.
    Optional {
        /// Type when there is one.
        item: Box<Type>,
    },
    /// `Dict[key, value]`.
    Dict {
        /// Type of the keys.
        key: Box<Type>,
        /// Type of the values.
        value: Box<Type>,
    },
    /// `Tuple[…]`, or a named tuple.
    Tuple {
        /// Types of the items.
        items: Vec<Type>,
        /// Field names; empty for a plain tuple.
        names: Vec<String>,
    },
    /// Anything else.
    Other {
        /// As libtorch prints it.
        name: String,
    },
}
