//! From libtorch's words for a module's methods to the core's.
//!
//! Called where a module is loaded, and by the runtime's `inspect`, which prints them.

use torch_shim::{ModuleFacts, Type};
use torchmodel_core::interface::{ArgumentInterface, Interface, MethodInterface, ValueType};

/// The module's methods, in the core's words.
#[must_use]
pub fn of(facts: &ModuleFacts) -> Interface {
    let methods = facts.methods.iter().map(|method| MethodInterface {
        name: method.name.clone(),
        arguments: method.arguments.iter().map(argument).collect(),
        returns: value_type(&method.returns),
        is_stateful: method.is_stateful,
        mutates_inputs: method.mutates_inputs,
        duration_depends_on_values: method.duration_depends_on_values,
    });
    Interface { methods: methods.collect() }
}

fn argument(argument: &torch_shim::ArgumentSchema) -> ArgumentInterface {
    ArgumentInterface {
        name: argument.name.clone(),
        value_type: value_type(&argument.argument_type),
        has_default: argument.has_default,
    }
}

fn value_type(found: &Type) -> ValueType {
    let boxed = |item: &Type| Box::new(value_type(item));
    match found {
        Type::Tensor => ValueType::Tensor,
        Type::Int => ValueType::Int,
        Type::Float => ValueType::Float,
        Type::Bool => ValueType::Bool,
        Type::Str => ValueType::Str,
        Type::None => ValueType::None,
        Type::List { item } => ValueType::List(boxed(item)),
        Type::Optional { item } => ValueType::Optional(boxed(item)),
        Type::Dict { key, value } => ValueType::Dict { key: boxed(key), value: boxed(value) },
        Type::Tuple { items, names } => {
            ValueType::Tuple { items: items.iter().map(value_type).collect(), names: names.clone() }
        }
        Type::Other { name } => ValueType::Other(name.clone()),
    }
}
