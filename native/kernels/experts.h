/* The experts of a mixture: each token goes through the few that its router has chosen.
 *
 * The weights of all experts lie one behind the other in equal steps, so that the matrices of one are those
 * of the first, moved. Those of experts that no token has chosen are not read. */
#pragma once
#include "gemm.h"
#include "team.h"

/* (experts, columns) of float32 or bfloat16; NULL for none. */
struct expert_bias {
  const void *numbers;
  int bf16;
};

struct experts {
  size_t count, hidden, inner;
  int gated; /* whether there is a gate: down(activation(gate) * up), or down(activation(up)) */
  struct matrix gate, up, down; /* of the first expert, without biases; in gated experts `gate` and `up` are
                                 * of one kind, and made of the same rows */
  size_t up_step, down_step;    /* bytes from expert to expert, of gate and up, and of down */
  enum activation activation;
  /* Where limit is above 0: gate and up are at most `limit`, up is at least `-limit`, and what goes down is
   * gate * sigmoid(slope * gate) * (up + shift). */
  float limit, slope, shift;
  struct expert_bias up_bias, down_bias; /* up_bias: of gate and then up, or (alternate) of each in turn */
  int alternate;
};

/* What tokens are given, and by which experts. Rows are contiguous. */
struct experts_call {
  const void *input; /* rows of `hidden` numbers */
  void *output;      /* the same */
  int bf16;          /* of both */
  size_t rows;
  const int64_t *index; /* [rows][chosen] */
  const void *weights;  /* the same: what an expert's result counts */
  int weights_bf16;
  size_t chosen;
};

/* Bytes of the intermediate results of tokens that are computed together. Fewer tokens would read the weights
 * more often. Tests make them few. */
extern size_t experts_bytes;

/* For threads that run already: experts_begin by one of them, and when all know that, experts_share by all
 * with its result, which lies in `memory` of experts_room bytes. Rows of `output` may be those of `input`.
 * Every index must be one of an expert. Threads wait for each other within, and not at the end. */
struct job;
size_t experts_room(const struct experts *experts, const struct experts_call *call);
struct job *experts_begin(const struct experts *experts, const struct experts_call *call, char *memory);
void experts_share(struct job *job, const struct member *self);

/* 0; ENOMEM without memory; EDOM for an index of no expert, and then the output is untouched. */
int experts_run(const struct experts *experts, const struct experts_call *call, unsigned threads);
