//! Reading a `config.json` of `transformers`: what fits is taken, what does not is refused by name.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The settings of a `config.json`, read for an architecture of this name here.
#[derive(Clone, Copy)]
pub(super) struct Settings<'a> {
    config: &'a Value,
    arch: &'static str,
}

impl<'a> Settings<'a> {
    pub fn new(config: &'a Value, arch: &'static str) -> Self {
        Self { config, arch }
    }

    /// A setting, if it is there and not null; of a path `a.b`, b of the settings in a.
    pub fn get(&self, path: &str) -> Option<&'a Value> {
        let inside = |value: &'a Value, key: &str| value.get(key);
        path.split('.').try_fold(self.config, inside).filter(|value| !value.is_null())
    }

    /// A size that must be there.
    ///
    /// # Errors
    /// If it is missing or no whole number.
    pub fn size(&self, key: &str) -> Result<usize> {
        let size = self.get(key).and_then(Value::as_u64);
        let size = size.with_context(|| format!("config.json: `{key}` is missing or no number"))?;
        Ok(usize::try_from(size)?)
    }

    /// A size, if it is there.
    ///
    /// # Errors
    /// If it is no whole number.
    pub fn size_or_none(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|_| self.size(key)).transpose()
    }

    /// A number, if it is there.
    ///
    /// # Errors
    /// If it is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let number = |value: &Value| {
            value.as_f64().with_context(|| format!("config.json: `{key}` is {value}, no number"))
        };
        self.get(key).map(number).transpose()
    }

    /// Whether something holds, if it is said.
    ///
    /// # Errors
    /// If it is neither true nor false.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let flag = |value: &Value| {
            value
                .as_bool()
                .with_context(|| format!("config.json: `{key}` is {value}, neither true nor false"))
        };
        self.get(key).map(flag).transpose()
    }

    /// Refuses a setting that is there and does not fit; `ours` says what lrpt's architecture has.
    ///
    /// # Errors
    /// Names the setting and its value.
    pub fn refuse_unless(
        &self,
        key: &str,
        fits: impl FnOnce(&Value) -> bool,
        ours: &str,
    ) -> Result<()> {
        match self.get(key) {
            Some(value) if !fits(value) => {
                bail!("config.json: `{key}` is {value}; lrpt's {} has {ours}", self.arch)
            }
            _ => Ok(()),
        }
    }
}
