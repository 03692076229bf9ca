//! Questions with choices: which continuation of a context a model finds likeliest.

use super::score::{Row, surprises};
use crate::data::Tokenizer;
use crate::error::Failure;
use crate::model::Network;
use crate::params::ParamStore;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// A question: a line of a file of choices, whose other keys are ignored.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Question {
    /// What is given.
    pub context: String,
    /// How it may go on, with the space between where there is one.
    pub choices: Vec<String>,
    /// Number of the right one, counted from 0.
    pub gold: usize,
}

/// Accuracies over questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChoiceScore {
    /// Share of questions whose right choice has the largest log-likelihood.
    pub acc: f64,
    /// Standard error of `acc`, √(p (1 − p)/(n − 1)); none of a single question.
    pub acc_stderr: Option<f64>,
    /// Share of questions whose right choice has the largest log-likelihood per UTF-8 byte.
    pub acc_norm: f64,
    /// Standard error of `acc_norm`.
    pub acc_norm_stderr: Option<f64>,
    /// Number of questions.
    pub questions: usize,
    /// Choices whose context was cut from the left to fit the block.
    pub cut: usize,
    /// Log-likelihoods of the choices of each question, in nats.
    #[serde(skip)]
    pub log_likelihoods: Vec<Vec<f64>>,
}

/// The questions of a text of JSON lines.
///
/// # Errors
/// [`Failure::Usage`] for a line that is no question, naming it by its number.
pub fn read_questions(text: &str) -> Result<Vec<Question>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let questions = lines.map(|(number, line)| {
        question(line).map_err(|error| {
            let form = "{\"context\": \"...\", \"choices\": [\" a\", \" b\"], \"gold\": 0}";
            anyhow::Error::from(Failure::Usage(format!(
                "line {}: {error:#}; a line is {form}",
                number + 1
            )))
        })
    });
    let questions: Vec<Question> = questions.collect::<Result<_>>()?;
    if questions.is_empty() {
        return Err(Failure::Usage("no line, so no question".into()).into());
    }
    Ok(questions)
}

fn question(line: &str) -> Result<Question> {
    let question: Question = serde_json::from_str(line)?;
    let count = question.choices.len();
    ensure!(count > 1, "{count} choices, of which nothing is to be chosen");
    ensure!(
        question.gold < count,
        "`gold` is {}, but the choices are numbered 0 to {}",
        question.gold,
        count - 1
    );
    ensure!(question.choices.iter().all(|choice| !choice.is_empty()), "an empty choice");
    Ok(question)
}

impl ChoiceScore {
    /// Asks all questions: ln p(choice | context) is the sum over the tokens that context and
    /// choice together have beyond those of the context.
    ///
    /// # Errors
    /// If a text cannot be encoded, a context is empty where the tokenizer has no end of text to
    /// stand for it, or the model fails.
    pub fn of(
        model: &dyn Network,
        params: &ParamStore,
        tokenizer: &Tokenizer,
        questions: &[Question],
    ) -> Result<Self> {
        let block = model.config().block_size;
        let (mut rows, mut cut) = (Vec::new(), 0);
        for (number, question) in questions.iter().enumerate() {
            for choice in &question.choices {
                let mut row = row(tokenizer, &question.context, choice)
                    .with_context(|| format!("question {}", number + 1))?;
                cut += usize::from(keep_last(&mut row, block));
                rows.push(row);
            }
        }
        let mut sums =
            surprises(model, params, &rows)?.into_iter().map(|of| -of.iter().sum::<f64>());
        let log_likelihoods: Vec<Vec<f64>> = questions
            .iter()
            .map(|question| sums.by_ref().take(question.choices.len()).collect())
            .collect();
        let share = |is_per_byte: bool| {
            let right = questions.iter().zip(&log_likelihoods).filter(|(question, of)| {
                let bytes = question.choices.iter().map(|choice| match is_per_byte {
                    true => choice.len() as f64,
                    false => 1.0,
                });
                let scores: Vec<f64> = of.iter().zip(bytes).map(|(l, bytes)| l / bytes).collect();
                first_largest(&scores) == question.gold
            });
            right.count() as f64 / questions.len() as f64
        };
        let error = |p: f64| {
            let count = questions.len();
            (count > 1).then(|| (p * (1.0 - p) / (count - 1) as f64).sqrt())
        };
        let (acc, acc_norm) = (share(false), share(true));
        Ok(Self {
            acc,
            acc_stderr: error(acc),
            acc_norm,
            acc_norm_stderr: error(acc_norm),
            questions: questions.len(),
            cut,
            log_likelihoods,
        })
    }
}

/// Context and choice as one text, the choice to be scored. White space at the end of a context
/// belongs to the choice, since it is part of the token that begins it.
fn row(tokenizer: &Tokenizer, context: &str, choice: &str) -> Result<Row> {
    let given = tokenizer.encode(context.trim_end())?;
    let mut tokens = tokenizer.encode(&format!("{context}{choice}"))?;
    let mut from = given.len();
    if from == 0 {
        let end = tokenizer.end_of_text().context(
            "the context is empty, and the tokenizer has no end-of-text token to stand for it",
        )?;
        tokens.insert(0, end);
        from = 1;
    }
    ensure!(tokens.len() > from, "the choice {choice:?} adds no token to its context");
    Ok(Row { tokens, from })
}

/// Keeps the last `block` + 1 tokens, and says whether there were more.
fn keep_last(row: &mut Row, block: usize) -> bool {
    let beyond = row.tokens.len().saturating_sub(block + 1);
    row.tokens.drain(..beyond);
    row.from = row.from.saturating_sub(beyond).max(1);
    beyond > 0
}

/// The place of the largest number, the first of several.
fn first_largest(numbers: &[f64]) -> usize {
    let mut best = 0;
    for (place, number) in numbers.iter().enumerate() {
        if *number > numbers[best] {
            best = place;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_no_questions_are_named() {
        let good = r#"{"context": "a", "choices": [" b", " c"], "gold": 1, "id": 7}"#;
        assert_eq!(read_questions(&format!("{good}\n\n{good}\n")).unwrap().len(), 2);
        for (bad, expected) in [
            (r#"{"context": "a", "choices": [" b", " c"]}"#, "missing field `gold`"),
            (r#"{"context": "a", "choices": [" b", " c"], "gold": 2}"#, "numbered 0 to 1"),
            (r#"{"context": "a", "choices": [" b"], "gold": 0}"#, "1 choices"),
            (r#"{"context": "a", "choices": ["", "b"], "gold": 0}"#, "an empty choice"),
            ("a", "expected value"),
        ] {
            let error = read_questions(&format!("{good}\n{bad}")).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2);
            let error = error.to_string();
            assert!(error.starts_with("line 2: ") && error.contains(expected), "{error}");
        }
        assert!(read_questions("\n").is_err());
    }

    #[test]
    fn rows_score_the_choice_only() {
        let bytes = Tokenizer::bytes();
        let with = |context, choice| row(&bytes, context, choice);
        let [a, space, b] = [97, 32, 98];
        assert_eq!(with("a", " b").unwrap(), Row { tokens: vec![a, space, b], from: 1 });
        // The space of the context is scored with the choice.
        assert_eq!(with("a ", "b").unwrap(), Row { tokens: vec![a, space, b], from: 1 });
        let error = with("", "b").unwrap_err().to_string();
        assert!(error.contains("no end-of-text token"), "{error}");
        let trained = Tokenizer::train_byte_pair(&["ab".to_string()], 257).unwrap();
        assert_eq!(row(&trained, "", "b").unwrap().tokens[0], 0);
    }

    #[test]
    fn long_contexts_lose_their_beginning() {
        let mut long = Row { tokens: (0..10).collect(), from: 7 };
        assert!(keep_last(&mut long, 4));
        assert_eq!(long, Row { tokens: vec![5, 6, 7, 8, 9], from: 2 });
        let mut choice = Row { tokens: (0..10).collect(), from: 2 };
        assert!(keep_last(&mut choice, 4) && choice.from == 1);
        assert!(!keep_last(&mut choice, 4));
        assert_eq!(first_largest(&[-2.0, -1.0, -1.0]), 1);
    }
}
