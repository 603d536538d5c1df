/* Extended precision and wide integers, for all that a compiler can be told to aim at. */
#include <math.h>
#include <stdio.h>

int main(void)
{
    long double sum = 1;
    unsigned long long product = 1;
    double values[1000];

    for (int i = 1; i < 100000; i++)
        sum += sinl(i) / i + expl(-i * .001L);
    for (unsigned i = 0; i < 100000; i++)
        product = product * 6364136223846793005ull + i;
    for (int i = 0; i < 1000; i++)
        values[i] = sqrt(i) * 1.1;
    for (int i = 0; i < 1000; i++)
        sum += values[i] * values[999 - i];
    printf("%.20Lg %llu %zu\n", sum, product, sizeof(long));
    return 0;
}
