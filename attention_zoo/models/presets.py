"""Models by name, the papers' and our own: a table of `Seq2Seq` fields. What is only like another says so in its name.

A paper's model is its equations and sizes. Biases that it leaves out to be read more easily (Bahdanau 2014) or does not
speak of, first values of parameters and the places of dropout are ours.
"""

from typing import Any

from attention_zoo.models.seq2seq import Seq2Seq

# Luong 2015, section 4: 4 layers of 1000 LSTM units, 50,000 words, input feeding, dropout 0.2; the global
# attention with the general score, and an output layer without a bias (eq. 6). (The paper also reverses the order of
# the source's words, section 4.1: that is the data's affair.)
LUONG: dict[str, Any] = {
    "source_vocabulary": 50_000,
    "target_vocabulary": 50_000,
    "embedding": 1000,
    "encoder_units": 1000,
    "encoder_layers": 4,
    "decoder_units": 1000,
    "decoder_layers": 4,
    "cell": "lstm",
    "bidirectional": False,
    "attention": "luong",
    "score": "general",
    "input_feeding": True,
    "bridge": "copy",
    "output_bias": False,
    "dropout": 0.2,
}
# The paper's other mechanisms (sections 3.1 and 3.2): D = 10 words on either side; a location score knows 50 words
# and the end.
LUONG_VARIANTS: dict[str, dict[str, Any]] = {
    "dot": {"score": "dot"},
    "concat": {"score": "concat"},
    "location": {"score": "location", "positions": 51},
    "local_m_general": {"alignment": "local_m", "window": 10},
    "local_m_dot": {"alignment": "local_m", "window": 10, "score": "dot"},
    "local_p_general": {"alignment": "local_p", "window": 10},
    "local_p_dot": {"alignment": "local_p", "window": 10, "score": "dot"},
}

# RNNsearch, Bahdanau 2014, A.2: 1000 GRU units in each direction, 620-wide embeddings, 30,000 + unknown words,
# 1000 alignment units, maxout of 500.
BAHDANAU: dict[str, Any] = {
    "source_vocabulary": 30_001,
    "target_vocabulary": 30_001,
    "embedding": 620,
    "encoder_units": 1000,
    "decoder_units": 1000,
    "cell": "gru_reset_before",
    "attention": "bahdanau",
    "score": "additive",
    "bridge": "backward",
}

# See 2017, section 5, the baseline of 50,000 words: embeddings 128, LSTM 256, bidirectional encoder; h_t asks, by 512
# alignment units (as many as annotations are wide, in the authors' code).
# Not as in the paper: no pointer to words of the source; the decoder is fed `tanh(W [c; h])` instead of the context
# through a layer as wide as an embedding, and its output layer reads that instead of a linear layer (eq. 4); h alone
# asks, in the authors' code the LSTM's cell c as well; the bridge from the encoder is tanh of the last h instead of
# relu of h and c.
SEE: dict[str, Any] = {
    "source_vocabulary": 50_000,
    "target_vocabulary": 50_000,
    "embedding": 128,
    "encoder_units": 256,
    "decoder_units": 256,
    "cell": "lstm",
    "attention": "luong",
    "score": "additive",
    "score_units": 512,
    "input_feeding": True,
    "shared": True,
}

# Raffel 2017, section 4 and D.3: Luong's model with two layers of 512 units, 17,000 and 7,700 words (as the paper
# rounds them), dropout 0.3, an output layer with a bias, and monotonic attention with the additive score of eq. 16,
# r = -2; the source is not reversed.
# Perhaps not as in the paper: here the new state asks, and the decoder starts from the encoder's last states, which is
# Luong's, whose model it says to have changed in its attention alone; its equations, eq. 17 among them, write s_{i-1},
# and its algorithms s_0 = 0, for every model.
RAFFEL_TRANSLATION: dict[str, Any] = {
    **LUONG,
    "source_vocabulary": 17_000,
    "target_vocabulary": 7_700,
    "embedding": 512,
    "encoder_units": 512,
    "encoder_layers": 2,
    "decoder_units": 512,
    "decoder_layers": 2,
    "score": "additive_normalised",
    "alignment": "monotonic",
    "score_bias": -2.0,
    "output_bias": True,
    "dropout": 0.3,
}

PRESETS: dict[str, dict[str, Any]] = {
    "bahdanau_2014": BAHDANAU,
    # Tu 2016: RNNsearch with the linguistic coverage, one number a word, without fertility and with it, N = 2
    # (`prototype_search_with_coverage_state` of the authors' code). The previous state asks, as in RNNsearch. Their
    # neural coverage, a GRU for each word of the source, is not here.
    "tu_2016_linguistic": {**BAHDANAU, "past": "coverage"},
    "tu_2016_linguistic_fertility": {**BAHDANAU, "past": "coverage", "fertility": 2.0},
    # Chorowski 2015, the convolutional model for TIMIT (`nips_conv.yaml` of the authors' code): 3 layers of 256 GRU
    # units in each direction, 256 in the decoder, 10 filters 201 wide, 512 alignment units. The paper writes s_{i-1}
    # for the state that asks, but it has read y_{i-1} already: here that is the new state, Luong's timing, not
    # Bahdanau's. One-hot phones: 61, the end and the start.
    # Not as in the paper: its encoder reads frames of 123 numbers, 40 filter banks and the energy with two orders of
    # differences, and ours 123 symbols, one-hot; its decoder is fed the context and has a maxout readout, ours
    # `tanh(W [c; h])` for both; and its decoder starts from a learned state, ours from the encoder's last.
    "chorowski_2015_like": {
        "source_vocabulary": 123,
        "target_vocabulary": 63,
        "one_hot": True,
        "encoder_units": 256,
        "encoder_layers": 3,
        "decoder_units": 256,
        "cell": "gru_reset_before",
        "attention": "luong",
        "score": "additive",
        "past": "location",
        "score_units": 512,
        "filters": 10,
        "filter_width": 201,
        "input_feeding": True,
    },
    "see_2017_like": SEE,
    # Section 2.3, the feature; the loss is the experiment's affair.
    "see_2017_coverage_like": {**SEE, "past": "coverage"},
    "luong_2015": LUONG,
    **{f"luong_2015_{name}": {**LUONG, **fields} for name, fields in LUONG_VARIANTS.items()},
    "raffel_2017_translation_like": RAFFEL_TRANSLATION,
    # Eq. 17, the general score with g, which starts at 512^-1/2 (section 2.4), and r.
    "raffel_2017_translation_general_like": {**RAFFEL_TRANSLATION, "score": "general", "score_gain": 512**-0.5},
    # Raffel 2017, D.2 and algorithm 2, the model of Gigaword's headlines: 200,000 words in one embedding layer, 200
    # wide, a bidirectional encoder of 4 layers, LSTM and energy 256, r = -4; s_{i-1} asks, s_0 = 0, and the output
    # layer reads the decoder's state alone. (The paper's models of speech read frames, and skip or convolve them: not
    # here.)
    "raffel_2017_summarization": {
        "source_vocabulary": 200_000,
        "target_vocabulary": 200_000,
        "embedding": 200,
        "encoder_units": 256,
        "encoder_layers": 4,
        "decoder_units": 256,
        "attention": "bahdanau",
        "score": "additive_normalised",
        "alignment": "monotonic",
        "score_bias": -4.0,
        "readout": "state",
        "bridge": "zeros",
        "shared": True,
    },
    # Chiu 2018, A.2 and algorithm 1, the model of CNN / Daily Mail: 50,000 words, a bidirectional LSTM of 512 units,
    # 1024 in the decoder and in both energies, which are those of Raffel's eq. 16, r = 0, chunks of 8 words; s_{i-1}
    # asks, s_0 = 0, and the output layer reads s_i and c_i (eq. 3).
    # Not as in the paper: no pointer to words of the source; target embeddings are 512 wide as the source's, not 1024;
    # the energy of the chunks has no r, which a softmax does not see. Where it may have kept what See 2017 did, which
    # it "reimplemented", query, first state and output layer are those of the paper's own equations.
    "chiu_2018_summarization_like": {
        "source_vocabulary": 50_000,
        "target_vocabulary": 50_000,
        "embedding": 512,
        "encoder_units": 512,
        "decoder_units": 1024,
        "attention": "bahdanau",
        "score": "additive_normalised",
        "alignment": "mocha",
        "score_bias": 0.0,
        "chunk": 8,
        "chunk_score": "additive_normalised",
        "readout": "both",
        "bridge": "zeros",
    },
    # JoeyNMT's model for its reverse task (configs/rnn_reverse.yaml): LSTM 64, embeddings 16, 50 integers and four
    # special tokens; the decoder starts from zeros (`init_hidden: zero`).
    # Not as there: the attentional layer has no bias; dropout falls on embeddings and attentional vectors, there on
    # what enters the LSTM and on [h; c]; the forget gate starts with bias 1.
    "joeynmt_reverse_like": {
        "source_vocabulary": 54,
        "target_vocabulary": 54,
        "embedding": 16,
        "encoder_units": 64,
        "decoder_units": 64,
        "attention": "luong",
        "score": "general",
        "input_feeding": True,
        "bridge": "zeros",
        "output_bias": False,
        "dropout": 0.1,
    },
    # The models of experiments/dates_bahdanau.py and dates_luong.py, with the vocabularies of single dates.
    "dates_small": {
        "source_vocabulary": 159,
        "target_vocabulary": 15,
        "embedding": 48,
        "encoder_units": 128,
        "decoder_units": 128,
        "attention": "bahdanau",
        "score": "additive",
    },
    "dates_luong_small": {
        "source_vocabulary": 159,
        "target_vocabulary": 15,
        "embedding": 48,
        "encoder_units": 96,
        "decoder_units": 192,
        "attention": "luong",
        "score": "general",
        "input_feeding": True,
    },
    # The translator that `python -m benchmarks seq2seq` times.
    "translator": {
        "source_vocabulary": 8000,
        "target_vocabulary": 8000,
        "embedding": 256,
        "encoder_units": 512,
        "decoder_units": 512,
        "attention": "bahdanau",
        "score": "additive",
    },
}


def seq2seq(preset: str, **fields: Any) -> Seq2Seq:
    """The encoder-decoder of a paper by name, with any field replaced.

    Raises:
        ValueError: no preset has that name.

    >>> seq2seq("luong_2015", score="dot").decoder_layers
    4
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is one of {', '.join(PRESETS)}; got {preset!r}")
    return Seq2Seq(**{**PRESETS[preset], **fields})
