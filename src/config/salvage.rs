//! What works of a configuration that cannot be used, for who looks at a machine where nothing works yet.
//!
//! A value that is wrong gives way to the built-in one, a file that cannot be read to none, and each is told.
//! Nothing that keeps records may run with the result.

use super::layers::{Entry, Layers, SourceTable};
use super::value::{Origin, Problem};
use super::{Config, ConfigError, Inputs, every_layer, file_to_read, read};

impl Config {
    /// [`Config::load`] that gives what works, and everything that does not.
    ///
    /// # Errors
    /// The built-in file itself cannot be used: never in a program that was tested.
    pub fn load_what_works(inputs: &Inputs) -> Result<(Self, Vec<ConfigError>), ConfigError> {
        let mut errors = Vec::new();
        let mut found = match every_layer(inputs, file_to_read(inputs)) {
            Ok(layers) => layers,
            Err(error) => {
                errors.push(error);
                every_layer(inputs, None)?
            }
        };
        let problems = match read::read(&found) {
            Ok(config) => return Ok((config, errors)),
            Err(problems) => problems,
        };
        let built_in = every_layer(&Inputs::default(), None)?;
        forget(&mut found, &problems, &built_in);
        errors.push(ConfigError::Invalid(problems));
        let config = read::read(&found).or_else(|_| read::read(&built_in));
        Ok((config.map_err(ConfigError::Invalid)?, errors))
    }
}

/// Puts the built-in value where something is wrong; a source or property that is wrong is left out.
fn forget(found: &mut Layers, problems: &[Problem], built_in: &Layers) {
    let is_wrong =
        |origin: &Origin| *origin != Origin::BuiltIn && problems.iter().any(|p| p.origin.as_ref() == Some(origin));
    found.problems.clear();
    for (key, entry) in &mut found.entries {
        if let (true, Some(shipped)) = (is_wrong(&entry.origin), built_in.entry(key)) {
            *entry = shipped.clone();
        }
    }
    found.properties.retain(|_, entry| !is_wrong(&entry.origin));
    for source in &mut found.sources {
        source.entries.retain(|_, entry: &mut Entry| !is_wrong(&entry.origin));
    }
    found
        .sources
        .retain(|source: &SourceTable| !is_wrong(&source.origin) && !source.name().is_empty());
}
