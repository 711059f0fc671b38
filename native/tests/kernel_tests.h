/* The tests, by subject; each ends the process where something is wrong. */
#pragma once

void test_rows(void);
void test_embeddings(void);
void test_gemm(void);
void test_attention(void);
void test_team(void);
void test_layers(void);
void test_experts(void);
void test_mixtures(void);
