/* How llama.cpp lays layers over devices, written down once more in C, to make llamacpp_tensor_split.tsv.

   Source: https://github.com/ggml-org/llama.cpp at a5410f046c01d01330c8a42f13b64a211fedf2c3, src/llama-model.cpp,
   llama_model::load_tensors: "calculate the split points", "sum and normalize the splits to get the split points" and
   get_layer_buft_list; and --tensor-split (std::stof of each part). Later revisions count the first layer on a device
   differently (n_layer + 1 - n_gpu_layers), which is the same where all layers and the output head are on devices.

   It is a transcription of that function, not the engine: no engine with two devices was asked. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEVICES 16

static int first_above(const float *splits, int count, float value) { /* std::upper_bound */
    int low = 0;
    while (low < count) {
        int middle = (low + count) / 2;
        if (value < splits[middle]) count = middle;
        else low = middle + 1;
    }
    return low;
}

int main(void) {
    char line[1024];
    while (fgets(line, sizeof line, stdin)) {
        float splits[MAX_DEVICES], sum = 0.0f;
        int given[MAX_DEVICES] = {0}, devices = 0;
        if (line[0] == '#') { fputs(line, stdout); continue; }
        char *shares = strchr(line, '\t');
        if (!shares) return 1;
        *shares++ = 0;
        shares[strcspn(shares, "\t\n")] = 0;
        volatile int layers = atoi(line); /* n_layer + 1 and n_gpu_layers */
        printf("%d\t%s\t", layers, shares);
        for (char *part = strtok(shares, ","); part && devices < MAX_DEVICES; part = strtok(NULL, ","))
            splits[devices++] = strtof(part, NULL);
        for (int i = 0; i < devices; i++) { sum += splits[i]; splits[i] = sum; }
        for (int i = 0; i < devices; i++) splits[i] /= sum;
        for (int layer = 0; layer < layers; layer++)
            given[first_above(splits, devices, (float) layer / layers)]++;
        for (int i = 0; i < devices; i++) printf("%s%d", i ? "," : "", given[i]);
        printf("\n");
    }
    return 0;
}
